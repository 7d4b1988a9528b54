"""The engine: the only live code. Events (simpy) and steps (arrays) evaluate the same step costs."""
