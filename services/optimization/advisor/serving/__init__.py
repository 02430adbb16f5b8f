"""The serving side of an advice: traffic replayed against the real service, and the settings that serve it best."""
