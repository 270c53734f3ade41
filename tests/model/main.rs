//! The state machine under exhaustive exploration: every sequence of commands, with power cuts, kills and failed steps at
//! every step, within a few bounds. The transitions, the decision of recovery, the choice of a release, the plan for the data
//! and the record are the real ones; the medium, the services and the order of the durable steps are a model.
//!
//! `QX_MODEL_FAULTS`, `QX_MODEL_COMMANDS` and `QX_MODEL_TOGETHER` set the bounds: how many faults there are, how many commands
//! persons give, and how many of both together.

mod appliance;
#[path = "../counted.rs"]
mod counted;
mod explore;
mod world;

use explore::{Bounds, explore};
use world::Scene;

/// The bounds of an ordinary run.
const BOUNDS: Bounds = Bounds {
    faults: 2,
    commands: 2,
    together: 4,
};

fn bounds() -> Bounds {
    let number = |name, default| match std::env::var(name) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    };
    Bounds {
        faults: number("QX_MODEL_FAULTS", BOUNDS.faults),
        commands: number("QX_MODEL_COMMANDS", BOUNDS.commands),
        together: number("QX_MODEL_TOGETHER", BOUNDS.together),
    }
}

fn holds(scene: Scene, at_least: usize) {
    let bounds = bounds();
    let counted = explore(&scene, bounds).unwrap_or_else(|violation| panic!("{violation}"));
    let (states, transitions) = (counted.states, counted.transitions);
    counted::counted(
        &format!("model/{}", scene.name),
        format!("{states} states, {transitions} transitions"),
    );
    // So that it cannot become empty.
    assert!(counted.states >= at_least, "too few states");
}

/// Intent: the promises hold when releases leave the data alone.
#[test]
fn releases_without_a_migration() {
    holds(Scene::new("no migration", [1, 1, 1], false), 1500);
}

/// Intent: the promises hold when a copy of the data is migrated and exchanged.
#[test]
fn releases_that_migrate() {
    holds(Scene::new("migration of a copy", [1, 2, 3], false), 7000);
}

/// Intent: the promises hold when the live data itself is migrated.
#[test]
fn releases_that_migrate_in_place() {
    let scene = Scene::new("migration in place", [1, 2, 3], true);
    holds(scene, 10_000);
}

/// Intent: the promises hold when one good migration follows another.
#[test]
fn migrations_in_a_row() {
    let scene = Scene {
        bad: None,
        ..Scene::new("two migrations", [1, 2, 3], false)
    };
    holds(scene, 5500);
}

/// Intent: the promises hold where the old fallback has to go before the next release comes.
#[test]
fn a_disk_too_small_for_three_sets() {
    let scene = Scene {
        bad: None,
        small: true,
        ..Scene::new("small disk", [1, 1, 1], false)
    };
    holds(scene, 1200);
}
