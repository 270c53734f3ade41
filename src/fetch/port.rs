//! What a source of bytes can do, and what is asked of it.

use serde::{Deserialize, Serialize};

use qx_release::digest::Digest;
use qx_release::error::{Error, ErrorKind, Result};

use super::Source;

/// Where small files come from.
pub trait Fetch {
    /// The file at a path of the repository, `None` if there is none. More than `limit` bytes are an error.
    fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>>;

    /// A file that must be there and that `accept` takes: there may be another mirror to ask for one that it does not
    /// take.
    fn required(
        &self,
        path: &str,
        limit: u64,
        accept: &mut dyn FnMut(Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let bytes = self.small(path, limit)?.ok_or_else(|| {
            let why = format!("fetching {path}: there is no such file");
            Error::with(ErrorKind::Unavailable, why)
        })?;
        accept(bytes)
    }

    /// Whether a target may exist: a bundle may hold less than its metadata list. `false` only if it certainly does not.
    fn may_have(&self, _path: &str) -> bool {
        true
    }
}

impl Fetch for Source {
    fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        Source::small(self, path, limit)
    }

    fn required(
        &self,
        path: &str,
        limit: u64,
        accept: &mut dyn FnMut(Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        accept(Source::required(self, path, limit)?)
    }
}

/// A target and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Bytes.
    pub length: u64,
    /// The digest of its bytes.
    pub sha256: Digest,
    /// Its path in the repository.
    pub path: String,
}
