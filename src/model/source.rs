//! Where releases come from, as the configuration or a person names it.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use qx_release::text;

/// The address of a source.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum SourceAddress {
    /// What has a scheme.
    Url(String),
    /// A directory, or a bundle.
    Path(String),
}

impl<T: Into<String>> From<T> for SourceAddress {
    fn from(text: T) -> SourceAddress {
        let text = text.into();
        match text.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => SourceAddress::Path(path.to_owned()),
            _ if text.contains("://") => SourceAddress::Url(text),
            _ => SourceAddress::Path(text),
        }
    }
}

/// As it is read.
impl Serialize for SourceAddress {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            SourceAddress::Path(path) if path.starts_with('/') => {
                to.collect_str(&format_args!("file://{path}"))
            }
            SourceAddress::Url(text) | SourceAddress::Path(text) => to.serialize_str(text),
        }
    }
}

/// For people, without what may be secret: see [`text::place`].
impl fmt::Display for SourceAddress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&match self {
            SourceAddress::Url(url) => text::url(url),
            SourceAddress::Path(path) => text::place(path),
        })
    }
}
