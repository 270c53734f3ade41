//! The roles of a repository: four that every one has, and teams that the targets delegate to.

use qx_release::error::{Error, ErrorKind, Result};
use qx_release::text;
use qx_release::trust::Role;

/// The roles that every repository has.
pub(crate) const ROOT: &str = Role::Root.as_str();
/// Says which snapshot is the latest.
pub(crate) const TIMESTAMP: &str = Role::Timestamp.as_str();
/// Says which targets belong together.
pub(crate) const SNAPSHOT: &str = Role::Snapshot.as_str();
/// Says what is published, and which teams may publish too.
pub(crate) const TARGETS: &str = Role::Targets.as_str();

/// Whether it is one of the four roles that every repository has.
pub(crate) fn top_level(role: &str) -> bool {
    Role::ALL.iter().any(|known| known.as_str() == role)
}

/// The `_type` of a role's metadata: that of a team is `targets`.
pub(crate) fn kind(role: &str) -> &str {
    if top_level(role) { role } else { TARGETS }
}

/// A role that was named on the command line must not be a path.
pub(crate) fn check_team_name(team: &str) -> Result<()> {
    let wrong = |why: &str| {
        Error::with(
            ErrorKind::Usage,
            format!("invalid team name '{}': {why}", text::name(team)),
        )
    };
    team.parse::<qx_release::manifest::Name>()
        .map_err(|why| wrong(&why))?;
    let last = team.rsplit('.').next().unwrap_or(team).to_ascii_lowercase();
    if top_level(&last) {
        return Err(wrong("it is the name of a top-level role"));
    }
    if team.contains('+') {
        // Clients encode it in file names, and servers decode it, each in their own way.
        return Err(wrong("web servers disagree about the meaning of +"));
    }
    Ok(())
}
