//! qx-update
