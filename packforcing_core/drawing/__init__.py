"""Images of a render: what a block attends to, and the telemetry charts."""
