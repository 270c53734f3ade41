//! Sources of bytes: a web server or a directory.
