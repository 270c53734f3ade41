//! Until when the metadata that is kept can be trusted.

use std::path::Path;
use std::time::SystemTime;

use super::kept;
use qx_release::trust::clock::Clock;
use qx_release::trust::{Error, Limits, SnapshotCopy, TrustedSet};

pub use qx_release::trust::metadata::Expires;

/// The files that trust rests on now, each with its end; `root` is the shipped one, `known` the version of the root that was
/// trusted last.
///
/// # Errors
/// The shipped root cannot be trusted as such.
pub fn expiries(
    store: &Path,
    root: &[u8],
    known: u64,
    limits: &Limits,
) -> Result<Vec<(String, Expires)>, Error> {
    // So early that nothing has expired.
    let clock = Clock::new(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
    let mut set = TrustedSet::new(root, clock, limits)?;
    while set.root().version < known {
        let next = kept(store, &format!("{}.root.json", set.root().version + 1));
        if next.is_none_or(|bytes| set.update_root(&bytes).is_err()) {
            break;
        }
    }
    let mut found = vec![(
        format!("{}.root.json", set.root().version),
        set.root().expires.clone(),
    )];
    // What is damaged is told as such.
    if let Some(bytes) = kept(store, "timestamp.json")
        && set.update_timestamp(&bytes).is_ok()
    {
        found.extend(
            set.timestamp()
                .map(|t| ("timestamp.json".to_owned(), t.expires.clone())),
        );
    }
    if let Some(bytes) = kept(store, "snapshot.json")
        && set.update_snapshot(&bytes, SnapshotCopy::Stored).is_ok()
    {
        found.extend(
            set.snapshot()
                .map(|s| ("snapshot.json".to_owned(), s.expires.clone())),
        );
    }
    Ok(found)
}
