//! From documents to what a sidecar holds: all of it, or every error at once.
