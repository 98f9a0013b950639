"""The front end: HTTP, text and the event loop. Holds no tensor and never imports torch."""
