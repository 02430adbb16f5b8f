"""Files of rows to tables in memory."""
