"""The engine: units to Ray actors and back; the only room that knows Ray."""
