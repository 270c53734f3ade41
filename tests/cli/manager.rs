//! A service manager that refuses, lies, hangs or answers late, at each of its calls in turn: what is decided is decided by the
//! processes that are seen, and the appliance runs one set as a whole, or asks for a person.
//!
//! `QX_MANAGER` (4; `all`) says how many of these faults are tried of each operation, other ones each day.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::killed::boots;
use crate::common::{Appliance, Recipe, text, write_executable};
use crate::counted::counted;

/// Plays a service manager that misbehaves at one of its calls, as `out/misbehaves` says; else it is as good as ever.
const MANAGER: &str = r#"#!/bin/sh
root=${0%/*}
number=0
[ -e "$root/out/calls" ] && read -r number <"$root/out/calls"
number=$((number + 1))
echo $number >"$root/out/calls"
at=
[ -e "$root/out/misbehaves" ] && read -r at how <"$root/out/misbehaves"
[ "$number" = "$at" ] || exec "$root/svc.good" "$@"
echo "$1 $2, and it $how" >>"$root/out/svc.log"
case $how in
refuses) exit 1 ;;
lies) exit 0 ;;
hides) "$root/svc.good" "$@"; exit 1 ;;
hangs) exec sleep 1000 ;;
is-late) setsid sh -c 'sleep 1; exec "$0" "$@"' "$root/svc.good" "$@" </dev/null >/dev/null 2>&1 & ;;
esac
"#;

/// It does nothing and says so, does nothing and says that all is well, does it and says that it failed, never answers, or
/// answers before it has done it.
const FAULTS: [&str; 5] = ["refuses", "lies", "hides", "hangs", "is-late"];

/// An operation, during which the service manager misbehaves.
struct Scene {
    name: &'static str,
    arguments: &'static [&'static str],
    /// How it ends if nothing goes wrong.
    code: i32,
    /// What the release is like.
    recipe: fn(Recipe) -> Recipe,
    /// What comes before, once it is published.
    before: &'static [&'static str],
}

/// Intent: a good release is in place as a whole, or not at all, whatever the service manager does while it is installed.
#[test]
fn an_update() {
    at_each_call(&Scene {
        name: "update",
        arguments: &["apply"],
        code: 0,
        recipe: Recipe::quick_to_fail,
        before: &[],
    });
}

/// Intent: nor does it keep the way back from ending with the set from before, or with a person who is asked.
#[test]
fn an_update_that_fails() {
    at_each_call(&Scene {
        name: "failed update",
        arguments: &["apply"],
        code: 8,
        recipe: |recipe| recipe.behaviour("console", "error500"),
        before: &[],
    });
}

/// Intent: the same when a person goes back.
#[test]
fn a_way_back() {
    at_each_call(&Scene {
        name: "rollback",
        arguments: &["rollback"],
        code: 0,
        recipe: Recipe::quick_to_fail,
        before: &["apply"],
    });
}

fn at_each_call(scene: &Scene) {
    let appliance = Appliance::new();
    appliance.edit_config(|config| config["limits"]["service_timeout_s"] = json!(15));
    appliance.release(&appliance.recipe("1.1.0").quick_to_fail());
    appliance.update(&["apply"]).code(0);
    let svc = appliance.root.join("svc");
    fs::rename(&svc, appliance.root.join("svc.good")).unwrap();
    write_executable(&svc, MANAGER);
    let calls = {
        let outcome = misbehaving(&appliance, scene, "1.2.0", "0 never");
        assert_eq!(outcome, scene.code, "{}", appliance.tree());
        text(&appliance.root.join("out/calls"))
            .trim()
            .parse()
            .unwrap()
    };
    let mut faults: Vec<(u32, &str)> = (1..=calls)
        .flat_map(|call| FAULTS.map(|fault| (call, fault)))
        .collect();
    let all = faults.len();
    choose(&mut faults);
    for (number, (call, fault)) in faults.iter().enumerate() {
        eprintln!("{}: call {call} of {calls} {fault}", scene.name);
        afterwards(&appliance);
        let version = format!("1.{}.0", number + 3);
        let from = running(&appliance);
        let code = misbehaving(&appliance, scene, &version, &format!("{call} {fault}"));
        if *fault == "is-late" {
            std::thread::sleep(Duration::from_secs(2));
        }
        is_one_set(&appliance, scene, code, &from, &version);
    }
    afterwards(&appliance);
    counted(
        &format!("service-manager/{}", scene.name),
        format!("{all} in all, {} tried, 0 violations", faults.len()),
    );
}

/// Other ones each day, as many as are asked for.
fn choose(faults: &mut Vec<(u32, &str)>) {
    let most = match std::env::var("QX_MANAGER").as_deref() {
        Err(_) => 4,
        Ok("all") => return,
        Ok(number) => number.parse().expect("QX_MANAGER is a number or `all`"),
    };
    let days = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let day = usize::try_from(days.unwrap().as_secs() / 86_400).unwrap();
    // They are spread over all calls, and over all kinds of faults.
    let length = faults.len();
    faults.rotate_left(day % length);
    let step = length.div_ceil(most) | 1;
    *faults = faults.iter().copied().step_by(step).collect();
}

/// Runs the operation beside a manager that misbehaves like this; how it ended.
fn misbehaving(appliance: &Appliance, scene: &Scene, version: &str, how: &str) -> i32 {
    appliance.release(&(scene.recipe)(appliance.recipe(version)));
    if !scene.before.is_empty() {
        appliance.update(scene.before).code(0);
    }
    let _ = fs::remove_file(appliance.root.join("out/calls"));
    let misbehaves = appliance.root.join("out/misbehaves");
    fs::write(&misbehaves, how).unwrap();
    let ended = appliance.update(scene.arguments);
    fs::remove_file(misbehaves).unwrap();
    let silent = ended.code != 0 && ended.stderr.trim().is_empty();
    if silent || ended.stderr.contains("panicked") {
        ended.fail("it says nothing of use");
    }
    ended.code
}

/// One set runs as a whole, the exit code and `status` say which; or they ask for a person, and say why.
fn is_one_set(appliance: &Appliance, scene: &Scene, code: i32, from: &str, version: &str) {
    let status = appliance.status();
    if code == 10 {
        assert_eq!(status["needs_person"], true, "{status:#}");
        assert_ne!(status["problems"], json!([]), "{status:#}");
        return;
    }
    assert_eq!(status["needs_person"], false, "exit {code}: {status:#}");
    assert_eq!(status["phase"], "idle", "exit {code}: {status:#}");
    let runs = running(appliance);
    appliance.runs(&runs);
    let before = match scene.name {
        "rollback" => version,
        _ => from,
    };
    let done = match scene.code {
        0 => runs != before,
        _ => runs == before,
    };
    assert!(
        done || code != scene.code,
        "exit {code}, and {runs} runs: {}",
        appliance.tree()
    );
    assert!(
        !done || code == scene.code || scene.code != 0,
        "exit {code}, and {runs} runs: {}",
        appliance.tree()
    );
}

fn running(appliance: &Appliance) -> String {
    let status = appliance.status();
    let version = status["running"]["version"].as_str();
    version.unwrap_or_else(|| panic!("{status:#}")).to_owned()
}

/// With a manager that is well again, a boot brings the appliance to rest; a person who was asked for says that all is well.
fn afterwards(appliance: &Appliance) {
    if boots(appliance).code == 10 {
        appliance.update(&["reset"]).code(0);
    }
    let status = appliance.status();
    assert_eq!(status["needs_person"], false, "{status:#}");
    appliance.runs(&running(appliance));
}
