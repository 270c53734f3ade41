//! Values that cannot hold a hostile string: names, paths, modes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text;

/// A name: 1 to 64 of `A-Z a-z 0-9 . _ + -`, the first of them a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Name, String> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"._+-".contains(&b);
        if (1..=64).contains(&text.len())
            && text.bytes().all(good)
            && text.as_bytes()[0].is_ascii_alphanumeric()
        {
            Ok(Name(text))
        } else {
            Err(format!(
                "'{}' is not a name (1 to 64 letters, digits, '.', '_', '+', '-', a letter or digit first)",
                shortened(&text)
            ))
        }
    }
}

impl std::str::FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        Name::try_from(text.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path relative to a slot, a repository or a tree: at most 1024 bytes of UTF-8, every segment 1 to 255
/// bytes and neither `.` nor `..`; not absolute, no NUL or other control character.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(String);

impl RelPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The rest of this path below `other`: `None` if it is not below, `Some("")` if they are equal.
    pub fn below<'a>(&'a self, other: &RelPath) -> Option<&'a str> {
        let rest = self.0.strip_prefix(&other.0)?;
        if rest.is_empty() {
            Some("")
        } else {
            rest.strip_prefix('/')
        }
    }
}

impl TryFrom<String> for RelPath {
    type Error = String;

    fn try_from(text: String) -> Result<RelPath, String> {
        let segment = |s: &str| (1..=255).contains(&s.len()) && s != "." && s != "..";
        if text.len() <= 1024 && text.split('/').all(segment) && !text.contains(char::is_control) {
            Ok(RelPath(text))
        } else {
            Err(format!(
                "'{}' is not a relative path (no '..', no leading '/', no control character)",
                shortened(&text)
            ))
        }
    }
}

impl std::str::FromStr for RelPath {
    type Err = String;

    fn from_str(text: &str) -> Result<RelPath, String> {
        RelPath::try_from(text.to_owned())
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> String {
        path.0
    }
}

impl AsRef<std::path::Path> for RelPath {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A program: its path in the release's set, or the absolute path of one of the image's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProgramPath {
    path: RelPath,
    absolute: bool,
}

impl ProgramPath {
    /// In a set; `None` if it is the image's.
    pub fn in_set(&self) -> Option<&RelPath> {
        (!self.absolute).then_some(&self.path)
    }
}

impl TryFrom<String> for ProgramPath {
    type Error = String;

    fn try_from(text: String) -> Result<ProgramPath, String> {
        let rest = text.strip_prefix('/');
        let path = rest.unwrap_or(&text).parse()?;
        let absolute = rest.is_some();
        Ok(ProgramPath { path, absolute })
    }
}

impl From<ProgramPath> for String {
    fn from(program: ProgramPath) -> String {
        program.to_string()
    }
}

impl fmt::Display for ProgramPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = if self.absolute { "/" } else { "" };
        write!(f, "{root}{}", self.path)
    }
}

/// Permission bits, 0 to 0o777; as JSON octal text such as "0755".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(pub u32);

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Mode, String> {
        let digits =
            (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if digits && mode <= 0o777 => Ok(Mode(mode)),
            _ => Err(format!(
                "'{}' is not a mode (octal, 000 to 0777; no setuid, setgid or sticky bit)",
                shortened(&text)
            )),
        }
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> String {
        format!("{:04o}", mode.0)
    }
}

/// For messages: hostile text is escaped and cut.
pub(super) fn shortened(text: &str) -> String {
    text::clean(text, 80)
}
