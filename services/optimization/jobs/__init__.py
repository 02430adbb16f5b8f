"""Jobs that outlive their caller: states, database, scheduling, worker processes."""
