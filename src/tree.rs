//! What lies on disk: measuring a component.
