//! What `qx-publish` does.
