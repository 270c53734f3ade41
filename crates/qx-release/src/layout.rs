//! Where the files of a repository lie.

use crate::manifest::RelPath;

/// Where a target lies in a repository. `digest` is that of its bytes, in hexadecimal digits.
pub fn target_path(name: &RelPath, digest: &dyn std::fmt::Display, consistent: bool) -> String {
    match (consistent, name.as_str().rsplit_once('/')) {
        (false, _) => format!("targets/{name}"),
        (true, Some((dir, file))) => format!("targets/{dir}/{digest}.{file}"),
        (true, None) => format!("targets/{digest}.{name}"),
    }
}

/// Where a role's metadata lie in a repository; `version` for those whose name carries it. The names of delegated roles
/// are percent-encoded ([`RoleName::encoded`](crate::trust::delegation::RoleName::encoded)).
pub fn metadata_path(role: &str, version: Option<u64>) -> String {
    match version {
        Some(version) => format!("metadata/{version}.{role}.json"),
        None => format!("metadata/{role}.json"),
    }
}
