"""One internal request and one internal answer, whichever dialect asked."""
