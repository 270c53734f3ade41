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
    /// The same on a medium that may be plugged in.
    Medium(OnMedium),
}

/// A directory or a bundle on a medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnMedium {
    /// What its file system is called, as for findfs(8): `LABEL=NAME`.
    pub device: String,
    /// The path on it; `/` is the medium itself, or the only bundle on it.
    pub path: String,
}

/// How file systems are named (findfs(8)).
const FILE_SYSTEMS: [&str; 4] = ["LABEL=", "UUID=", "PARTLABEL=", "PARTUUID="];

impl<T: Into<String>> From<T> for SourceAddress {
    fn from(text: T) -> SourceAddress {
        let text = text.into();
        match text.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => SourceAddress::Path(path.to_owned()),
            _ if text.contains("://") => SourceAddress::Url(text),
            _ if FILE_SYSTEMS.iter().any(|word| text.starts_with(word)) => {
                let (device, path) = match text.split_once(":/") {
                    Some((device, path)) => (device.to_owned(), format!("/{path}")),
                    None => (text, "/".to_owned()),
                };
                SourceAddress::Medium(OnMedium { device, path })
            }
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
            SourceAddress::Medium(medium) => to.collect_str(medium),
        }
    }
}

/// For people, without what may be secret: see [`text::place`].
impl fmt::Display for SourceAddress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&match self {
            SourceAddress::Url(url) => text::url(url),
            SourceAddress::Path(path) => text::place(path),
            SourceAddress::Medium(medium) => text::name(&medium.to_string()),
        })
    }
}

/// As it is read.
impl fmt::Display for OnMedium {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.path)
    }
}
