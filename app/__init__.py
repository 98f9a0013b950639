"""The front end: HTTP, text and the event loop. It holds no tensor and never imports torch."""
