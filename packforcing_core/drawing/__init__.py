"""Images of what a render does: its window on the past, and its telemetry."""
