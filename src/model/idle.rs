//! What runs while nothing is going on.

use serde::{Deserialize, Serialize};

use crate::model::slot::Installed;

/// Nothing is going on: what runs, and what it would fall back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// What runs.
    pub active: Installed,
    /// What is used if the active set is damaged, before the factory set as the last resort.
    pub fallback: Option<Installed>,
    /// Since when it runs (RFC 3339).
    pub since: String,
    /// What a person should know or do.
    #[serde(default)]
    pub trouble: Option<Trouble>,
    /// The release that ran here until its files were damaged: what `apply --repair` fetches again.
    #[serde(default)]
    pub lost: Option<Installed>,
}

/// Something that a person should know, or do something about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// One sentence.
    pub what: String,
    /// Whether the appliance cannot recover by itself.
    pub needs_person: bool,
}

impl Idle {
    /// A set that runs from now on without trouble.
    pub fn on(active: Installed, fallback: Option<Installed>, now: &str) -> Idle {
        Idle {
            active,
            fallback,
            since: now.to_owned(),
            trouble: None,
            lost: None,
        }
    }
}
