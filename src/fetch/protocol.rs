//! What an update and its fetcher say to each other: a line of JSON each, the bytes of a file behind the line that announces them.
//! The fetcher takes its order, says that it is ready, and then answers one request after the other.

use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Options;
use super::port::Target;
use crate::model::source::SourceAddress;
use qx_release::error::Told;
use qx_release::manifest::Component;

/// No line is longer; a component and its names are far from it.
const MAX_LINE: u64 = 1 << 20;

/// What a fetcher is for, said once.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// The source that it asks.
    pub source: SourceAddress,
    /// How.
    pub options: Options,
    /// Whether the source did not answer an earlier fetcher after all tries.
    pub given_up: bool,
    /// Directories in which it may write.
    pub writable: Vec<PathBuf>,
    /// The process that it ends with.
    pub parent: u32,
}

/// What a fetcher is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Whether there may be a file of that path.
    MayHave(String),
    /// A whole file, at most `limit` bytes.
    Small {
        /// Its path.
        path: String,
        /// Its greatest length.
        limit: u64,
        /// Whether it must be there.
        required: bool,
    },
    /// Get an artifact, and keep it open.
    Artifact {
        /// Which.
        target: Target,
        /// Where downloads go.
        downloads: PathBuf,
        /// Whether its digest is to be checked even where it lies in place.
        check: bool,
    },
    /// Unpack the artifact that is open.
    Unpack {
        /// As this component.
        component: Box<Component>,
        /// Into this directory.
        staging: PathBuf,
    },
}

/// What a fetcher says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It has its order, and is confined but for this, a sentence each.
    Ready(Vec<String>),
    /// So many bytes of the artifact are there; the answer is still to come.
    Progress(u64),
    /// The answer to [`Request::MayHave`].
    MayHave(bool),
    /// So many bytes follow.
    Bytes(u64),
    /// There is no such file.
    Nothing,
    /// It is done.
    Done,
    /// It cannot be done.
    Failed {
        /// Why.
        why: Told,
        /// Whether the source did not answer after all tries.
        given_up: bool,
    },
}

/// Sends a line.
pub fn send(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// The next line, `None` at the end.
pub fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(MAX_LINE).read_until(b'\n', &mut line)?;
    match line.is_empty() {
        true => Ok(None),
        false => Ok(Some(serde_json::from_slice(&line)?)),
    }
}
