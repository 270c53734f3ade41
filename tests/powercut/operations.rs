//! What is recorded. A new operation is a line of [`OPERATIONS`].

use std::process::Command;

use serde_json::json;

use crate::appliance::{Appliance, Release};
use crate::check::Allowed;

/// An operation to be cut.
pub struct Operation {
    pub name: &'static str,
    /// The commands of `qx-update` that it covers.
    pub commands: &'static [&'static str],
    /// What the appliance is like before.
    pub prepare: fn(&mut Appliance),
    /// What is cut.
    pub run: fn(&Appliance),
    /// What may run after a cut, and on which data.
    pub allowed: &'static [Allowed],
    /// What is tried next.
    pub again: fn(&Appliance) -> Result<(), String>,
    /// What runs then.
    pub finally: &'static [Allowed],
}

/// A single command, at each of whose steps something can go wrong.
pub struct Single {
    /// The operation that it is.
    pub name: &'static str,
    pub arguments: &'static [&'static str],
    /// How it ends when nothing goes wrong, and what runs then.
    pub code: i32,
    pub done: Allowed,
}

impl Single {
    pub fn operation(&self) -> &'static Operation {
        let found = OPERATIONS.iter().find(|op| op.name == self.name);
        found.unwrap_or_else(|| panic!("there is no operation {}", self.name))
    }

    /// An appliance on which it is the next command.
    pub fn prepared(&self) -> Appliance {
        let mut appliance = Appliance::in_memory();
        appliance.first_data();
        (self.operation().prepare)(&mut appliance);
        appliance
    }
}

pub const SINGLE: [Single; 8] = [
    single("first-update", &["apply"], 0, OLD),
    single("update", &["apply"], 0, NEW),
    single("migration", &["apply"], 0, MIGRATED),
    single("failed-migration", &["apply"], 8, OLD),
    single("rollback", &["rollback"], 0, OLD),
    // The trial goes on.
    single("recovery", &["recover", "--stage", "link"], 0, MIGRATED),
    single("adoption", &["adopt"], 0, ADOPTED),
    single("adoption-undone", &["adopt", "--undo"], 0, PLAIN),
];

const fn single(
    name: &'static str,
    arguments: &'static [&'static str],
    code: i32,
    done: Allowed,
) -> Single {
    Single {
        name,
        arguments,
        code,
        done,
    }
}

const MIGRATES: Release = Release {
    schema: 2,
    sick: false,
    itself: false,
};
const ITSELF: Release = Release {
    schema: 1,
    sick: false,
    itself: true,
};

const OLD: Allowed = (Some("1.1.0"), 1);
const NEW: Allowed = (Some("1.2.0"), 1);
const NEWEST: Allowed = (Some("1.3.0"), 1);
const PLAIN: Allowed = (Some(crate::check::PLAIN), 1);
const ADOPTED: Allowed = (Some("1.1.0+adopted"), 1);
const MIGRATED: Allowed = (Some("1.2.0"), 2);

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "first-update",
        commands: &["apply"],
        prepare: |a| a.release("1.1.0", Release::default()),
        run: |a| apply(a, 0),
        allowed: &[(None, 1), OLD],
        again: |a| applied(a),
        finally: &[OLD],
    },
    Operation {
        name: "update",
        commands: &["apply"],
        prepare: |a| {
            running(a);
            a.release("1.2.0", Release::default());
        },
        run: |a| apply(a, 0),
        allowed: &[OLD, NEW],
        again: |a| applied(a),
        finally: &[NEW],
    },
    Operation {
        name: "update-over-the-fallback",
        commands: &["apply"],
        prepare: |a| {
            running(a);
            a.release("1.2.0", Release::default());
            apply(a, 0);
            a.release("1.3.0", Release::default());
        },
        run: |a| apply(a, 0),
        allowed: &[NEW, NEWEST],
        again: |a| applied(a),
        finally: &[NEWEST],
    },
    Operation {
        name: "migration",
        commands: &["apply"],
        prepare: |a| {
            running(a);
            a.release("1.2.0", MIGRATES);
        },
        run: |a| apply(a, 0),
        allowed: &[OLD, MIGRATED],
        again: |a| applied(a),
        finally: &[MIGRATED],
    },
    Operation {
        name: "failed-migration",
        commands: &["apply"],
        prepare: |a| {
            running(a);
            a.release(
                "1.2.0",
                Release {
                    sick: true,
                    ..MIGRATES
                },
            );
        },
        run: |a| apply(a, 8),
        allowed: &[OLD, MIGRATED],
        // It fails again, or is not tried again.
        again: |a| a.update(&["apply"]).expect(&[5, 8]).map(drop),
        finally: &[OLD],
    },
    Operation {
        name: "migration-beside-log-rotation",
        commands: &["apply"],
        prepare: |a| {
            running(a);
            a.configure(|config| config["log"] = json!({"max_bytes": 300, "keep": 2}));
            a.release("1.2.0", MIGRATES);
        },
        run: |a| apply(a, 0),
        allowed: &[OLD, MIGRATED],
        again: |a| applied(a),
        finally: &[MIGRATED],
    },
    Operation {
        name: "self-update",
        commands: &["apply"],
        prepare: |a| {
            a.release("1.1.0", ITSELF);
            apply(a, 0);
            a.release("1.2.0", ITSELF);
        },
        run: |a| {
            let ended = a.update_by_itself(&["apply"]).expect(&[0]);
            ended.unwrap_or_else(|why| panic!("{why}"));
        },
        allowed: &[OLD, NEW],
        again: |a| applied(a),
        finally: &[NEW],
    },
    Operation {
        name: "staging",
        commands: &["apply"],
        prepare: |a| {
            running(a);
            a.release("1.2.0", Release::default());
        },
        run: |a| expect(a, &["apply", "--stage-only"], 0),
        allowed: &[OLD],
        again: |a| applied(a),
        finally: &[NEW],
    },
    Operation {
        name: "rollback",
        commands: &["rollback"],
        prepare: |a| {
            running(a);
            a.release("1.2.0", Release::default());
            apply(a, 0);
        },
        run: |a| expect(a, &["rollback"], 0),
        allowed: &[OLD, NEW],
        again: |a| {
            a.update(&["apply", "1.2.0", "--retry"])
                .expect(&[0, 3])
                .map(drop)
        },
        finally: &[NEW],
    },
    Operation {
        name: "rollback-to-the-factory-set",
        commands: &["rollback"],
        prepare: running,
        run: |a| expect(a, &["rollback", "--to", "factory"], 0),
        allowed: &[(None, 1), OLD],
        again: |a| {
            a.update(&["apply", "1.1.0", "--retry"])
                .expect(&[0, 3])
                .map(drop)
        },
        finally: &[OLD],
    },
    Operation {
        name: "data-restore",
        commands: &["data"],
        prepare: |a| {
            data_set_aside(a);
            expect(a, &["apply", "1.2.0", "--retry"], 0);
        },
        run: |a| expect(a, &["data", "restore", &kept(a)], 0),
        allowed: &[MIGRATED],
        again: |a| a.update(&["apply"]).expect(&[3]).map(drop),
        finally: &[MIGRATED],
    },
    Operation {
        name: "data-drop",
        commands: &["data"],
        prepare: data_set_aside,
        run: |a| expect(a, &["data", "drop", &kept(a)], 0),
        allowed: &[OLD],
        again: |a| {
            let retry = ["apply", "1.2.0", "--retry"];
            a.update(&retry).expect(&[0]).map(drop)
        },
        finally: &[MIGRATED],
    },
    Operation {
        name: "recovery",
        commands: &["recover", "confirm"],
        prepare: killed_in_the_trial,
        run: |a| {
            expect(a, &["recover"], 0);
            let _ = a.update(&["confirm"]);
        },
        allowed: &[OLD, MIGRATED],
        again: |a| a.update(&["apply"]).expect(&[5, 8]).map(drop),
        finally: &[OLD],
    },
    Operation {
        name: "adoption",
        commands: &["adopt"],
        prepare: |a| a.in_plain_directories("1.1.0"),
        run: |a| expect(a, &["adopt"], 0),
        allowed: &[PLAIN, ADOPTED],
        again: |a| a.update(&["adopt"]).expect(&[0, 3]).map(drop),
        finally: &[ADOPTED],
    },
    Operation {
        name: "adoption-undone",
        commands: &["adopt"],
        prepare: |a| {
            a.in_plain_directories("1.1.0");
            expect(a, &["adopt"], 0);
        },
        run: |a| expect(a, &["adopt", "--undo"], 0),
        allowed: &[PLAIN, ADOPTED],
        again: |a| a.update(&["adopt", "--undo"]).expect(&[0, 3]).map(drop),
        finally: &[PLAIN],
    },
    Operation {
        name: "trust-and-log",
        commands: &["check", "reset"],
        prepare: |a| {
            running(a);
            a.configure(|config| config["log"] = json!({"max_bytes": 300, "keep": 2}));
            a.release("1.2.0", Release::default());
        },
        run: |a| {
            expect(a, &["check"], 4);
            expect(a, &["reset"], 0);
            expect(a, &["check"], 4);
        },
        allowed: &[OLD],
        again: |a| applied(a),
        finally: &[NEW],
    },
];

fn running(a: &mut Appliance) {
    a.release(
        "1.1.0",
        Release {
            schema: 1,
            ..Release::default()
        },
    );
    apply(a, 0);
}

/// What a release with a migration wrote is set aside, and the older one runs on its own data.
fn data_set_aside(a: &mut Appliance) {
    running(a);
    a.release("1.2.0", MIGRATES);
    apply(a, 0);
    expect(a, &["rollback", "--set-aside-data"], 0);
}

/// The id of the data that is kept, and was written last.
fn kept(a: &Appliance) -> String {
    let status = a.status();
    let kept = status["kept_data"].as_array().unwrap();
    let set_aside = kept.iter().find(|kept| kept["reason"] == "set-aside");
    let id = set_aside.unwrap_or_else(|| panic!("{kept:?}"))["id"].as_str();
    id.unwrap().to_owned()
}

fn apply(a: &Appliance, code: i32) {
    expect(a, &["apply"], code);
}

#[track_caller]
fn expect(a: &Appliance, arguments: &[&str], code: i32) {
    if let Err(why) = a.update(arguments).expect(&[code]) {
        panic!("{why}");
    }
}

/// It is there already, or can be had now.
fn applied(a: &Appliance) -> Result<(), String> {
    a.update(&["apply"]).expect(&[0, 3]).map(drop)
}

/// A sick release with a migration is on trial, and the updater is gone.
fn killed_in_the_trial(a: &mut Appliance) {
    running(a);
    a.release(
        "1.2.0",
        Release {
            sick: true,
            ..MIGRATES
        },
    );
    a.kill_in_the_trial("1.2.0");
}

/// The commands that `qx-update` has.
pub fn commands() -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qx-update"));
    let help = crate::disk::run(command.arg("--help"));
    let (_, list) = help.split_once("\nCommands:\n").unwrap();
    let lines = list.lines().take_while(|line| !line.trim().is_empty());
    let lines = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    lines
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect()
}
