//! The appliance walks at random through good, bad, migrating and self-updating releases and images, while the power goes at random
//! instants (in the initramfs too), the network, the clock, the disk and the services misbehave, and a person types at the wrong
//! moment. After each step exactly one complete set runs, with its own data; and every few steps an update must simply succeed.
//!
//! `QX_SOAK_KILLS` says how many power cuts there are (the default is for CI), `QX_SOAK_SEED` which walk it is. A walk that fails
//! prints its seed and its steps; the same seed takes the same steps, though no two machines are cut at the same instruction.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::built;
use crate::release::{Release, Repository};
use crate::vm::{Appliance, Output};

/// Power cuts of all walks together in CI.
const KILLS: u64 = 102;
/// Walks, each on an appliance of its own.
const WALKS: u64 = 3;
/// The images it boots from, and the versions of their factory sets.
const IMAGES: [(&str, &str); 2] = [("soak", "1.0.0"), ("soak-next", "1.0.1")];
/// The file whose first line is its schema: a data set of the appliance.
const LEDGER: &str = "/data/ledger";

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Days since 1970: another walk each day, the same one all day.
fn today() -> u64 {
    let now = std::time::SystemTime::now();
    let age = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    age.as_secs() / 86_400
}

/// Intent: whatever happens, in whatever order, an appliance has exactly one complete set with matching data, says so, and can
/// be updated.
#[test]
fn the_appliance_walks_at_random() {
    let kills = number("QX_SOAK_KILLS").unwrap_or(KILLS).div_ceil(WALKS);
    let seed = number("QX_SOAK_SEED").unwrap_or_else(today);
    std::thread::scope(|scope| {
        let walks: Vec<_> = (0..WALKS)
            .map(|walk| scope.spawn(move || Walk::new(walk, seed * WALKS + walk).until(kills)))
            .collect();
        let ended: Vec<_> = walks.into_iter().map(|walk| walk.join()).collect();
        let failed = ended.iter().filter(|ended| ended.is_err()).count();
        assert_eq!(
            failed, 0,
            "walks failed; QX_SOAK_SEED={seed} takes the same steps"
        );
        let (mut cut, mut steps) = (0, 0);
        for (kills, taken) in ended.into_iter().flatten() {
            cut += kills;
            steps += taken;
        }
        crate::counted::counted(
            "soak/power cuts in a walk of the whole machine",
            format!("{cut} in {steps} steps (QX_SOAK_SEED={seed}), all survived"),
        );
    });
}

/// xorshift64*: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below this.
    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// At most so long.
    fn part_of(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.below(10_000) as f64 / 10_000.0)
    }
}

/// A release that was published.
struct Published {
    release: Release,
    good: bool,
    schema: u64,
}

struct Walk {
    name: String,
    appliance: Appliance,
    repository: Repository,
    /// Which of the images.
    image: usize,
    random: Random,
    releases: BTreeMap<String, Published>,
    newest: String,
    schema: u64,
    kills: u64,
    /// How long a boot, and an update, took when nothing disturbed them.
    boot: Duration,
    update: Duration,
    steps: Steps,
}

/// What was done; printed if the walk fails.
struct Steps {
    seed: u64,
    text: String,
    count: u64,
}

impl Drop for Steps {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the walk of seed {}:\n{}", self.seed, self.text);
        }
    }
}

impl Walk {
    fn new(walk: u64, seed: u64) -> Walk {
        let name = format!("soak-{walk}");
        make_images();
        let repository = Repository::with(&format!("{name}-repository"), &[]);
        let mut walk = Walk {
            appliance: Appliance::new(&name),
            name,
            repository,
            image: 0,
            // Never 0, from which it would not get away.
            random: Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            releases: BTreeMap::new(),
            newest: String::new(),
            schema: 1,
            kills: 0,
            boot: Duration::from_secs(20),
            update: Duration::from_secs(20),
            steps: Steps {
                seed,
                text: String::new(),
                count: 0,
            },
        };
        walk.use_image(0);
        walk.note("first boot");
        walk.appliance.boot();
        walk.appliance.ok(&format!(
            "echo 1 >{LEDGER}; echo written by a user >>{LEDGER}; chown quantix {LEDGER}; sync"
        ));
        walk.goes_on();
        walk
    }

    /// From the next boot on.
    fn use_image(&mut self, image: usize) {
        self.image = image;
        let (root, _) = IMAGES[image];
        self.appliance
            .set_options(&["--root", root, "--repo", &self.repository.url]);
    }

    fn note(&mut self, what: &str) {
        self.steps.count += 1;
        let _ = writeln!(self.steps.text, "{:4} {what}", self.steps.count);
        eprintln!("{} {:4} {what}", self.name, self.steps.count);
    }

    /// Walks until so many power cuts are survived; tells how many there were, and how many steps.
    fn until(mut self, kills: u64) -> (u64, u64) {
        while self.kills < kills {
            self.step();
            self.check();
            if self.random.one_in(6) {
                self.goes_on();
            }
        }
        self.goes_on();
        (self.kills, self.steps.count)
    }

    fn step(&mut self) {
        match self.random.below(18) {
            0..=2 => self.cut_in_a_boot(),
            3..=6 => self.cut_in("apply"),
            7 => self.cut_in("rollback"),
            8 => self.cut_in("confirm"),
            9 => self.killed_updater(),
            10 => self.no_network(),
            11 => self.no_space(),
            12 => self.another_clock(),
            13 => self.crashing_service(),
            14 => self.a_person_types(),
            15 => self.another_image(),
            16 => self.another_image_after_a_cut(),
            _ => self.undisturbed(),
        }
    }

    /// A further release. One in three is bad, one in three migrates, one in four brings the updater itself.
    fn publish(&mut self, good: bool) {
        let version = format!("2.{}.0", self.releases.len());
        let base = match (good, self.random.one_in(2)) {
            (false, true) => "crash",
            (false, false) => "error500",
            (true, true) => "v1",
            (true, false) => "v2",
        };
        let migrates = self.random.one_in(3);
        let schema = self.schema + u64::from(migrates);
        let itself = self.random.one_in(4);
        let fails = !good && migrates && self.random.one_in(2);
        self.note(&format!(
            "publishes {version}: {base}, schema {schema}{}{}",
            if itself { ", the updater" } else { "" },
            if fails { ", its migration fails" } else { "" },
        ));
        let name = format!("{}-{}", self.name, self.releases.len());
        let release = Release::derived(&name, base, &version, |recipe, dir| {
            quick(recipe);
            moves_the_ledger(recipe, dir, schema, fails);
            if itself {
                brings_the_updater(recipe, dir, &version);
            }
        });
        self.repository.publish(&release);
        if good {
            self.schema = schema;
        }
        let published = Published {
            release,
            good,
            schema,
        };
        self.releases.insert(version.clone(), published);
        self.newest = version;
    }

    fn publish_any(&mut self) {
        let good = !self.random.one_in(3);
        self.publish(good);
    }

    /// An update that nothing disturbs succeeds.
    fn goes_on(&mut self) {
        self.publish(true);
        let version = self.newest.clone();
        self.note(&format!("applies {version}, undisturbed"));
        let began = Instant::now();
        self.exits("apply", &[0]);
        self.update = began.elapsed();
        self.check();
        let status = self.appliance.status();
        assert_eq!(status["running"]["version"], version, "{status:#}");
    }

    /// The same, whatever the release is.
    fn undisturbed(&mut self) {
        self.publish_any();
        let newest = &self.releases[&self.newest];
        let codes: &[i32] = match newest.good {
            true => &[0],
            false => &[8, 9],
        };
        self.note("applies it");
        self.exits("apply", codes);
        if self.random.one_in(3) {
            self.note("reboots");
            self.appliance.power_off();
            self.boots();
        }
    }

    /// Exactly one complete set, a good one, with the data that is its own; and `status` says so.
    fn check(&mut self) {
        let status = self.appliance.settled();
        let version = status["running"]["version"].as_str().unwrap().to_owned();
        assert_eq!(status["needs_person"], false, "{status:#}");
        let (release, schema) = match self.releases.get(&version) {
            Some(published) => {
                let trial = status["phase"] == "trial";
                assert!(published.good || trial, "a bad release runs: {status:#}");
                (published.release.clone(), published.schema)
            }
            None => (factory(self.image), 1),
        };
        self.appliance.assert_runs(&release);
        self.exits("verify", &[0]);
        let ledger = self.appliance.ok(&format!("cat {LEDGER}"));
        let mut lines = ledger.lines();
        assert_eq!(
            lines.next(),
            Some(schema.to_string().as_str()),
            "the data of {version} is another's: {ledger}"
        );
        assert_eq!(lines.next(), Some("written by a user"), "{ledger}");
    }

    fn exits(&self, arguments: &str, codes: &[i32]) -> Output {
        let output = self.appliance.run(&updater(arguments));
        assert!(
            codes.contains(&output.code),
            "`qx-update {arguments}` exited {}, not one of {codes:?}: {output:#?}",
            output.code
        );
        output
    }

    /// Boots to the end; mostly the power goes again on the way there, and again.
    fn boots(&mut self) {
        while !self.random.one_in(7) {
            let after = self.in_a_boot();
            self.note(&format!("the power goes {after:.1?} after it came"));
            self.appliance.cut_the_boot(after);
            self.kills += 1;
        }
        self.note("boots");
        let began = Instant::now();
        self.appliance.boot();
        self.boot = began.elapsed();
    }

    /// An instant in a boot; mostly in its first third, where the initramfs is, and recovery.
    fn in_a_boot(&mut self) -> Duration {
        let span = match self.random.one_in(3) {
            true => self.boot,
            false => self.boot / 3,
        };
        self.random.part_of(span)
    }

    fn cut_in_a_boot(&mut self) {
        self.appliance.power_off();
        let after = self.in_a_boot();
        self.note(&format!(
            "reboots; the power goes {after:.1?} after it came"
        ));
        self.appliance.cut_the_boot(after);
        self.kills += 1;
        self.boots();
    }

    /// The image is updated beneath everything.
    fn another_image(&mut self) {
        self.appliance.power_off();
        self.boots_the_other_image();
    }

    /// The same while an update is under way: what comes up is another image's.
    fn another_image_after_a_cut(&mut self) {
        self.power_goes_in("apply");
        self.boots_the_other_image();
    }

    fn boots_the_other_image(&mut self) {
        let other = 1 - self.image;
        self.use_image(other);
        self.note(&format!("the image is {}", IMAGES[other].0));
        self.boots();
    }

    fn cut_in(&mut self, command: &str) {
        self.power_goes_in(command);
        self.boots();
    }

    fn power_goes_in(&mut self, command: &str) {
        self.publish_any();
        let after = self.random.part_of(self.update);
        self.note(&format!("{command}; the power goes after {after:.1?}"));
        let _cut = self.appliance.spawn(&updater(command));
        std::thread::sleep(after);
        self.appliance.kill();
        self.kills += 1;
    }

    fn killed_updater(&mut self) {
        self.publish_any();
        let after = self.random.part_of(self.update);
        self.note(&format!(
            "apply; its processes are killed after {after:.1?}"
        ));
        let killed = self.appliance.spawn(&updater("apply"));
        std::thread::sleep(after);
        self.appliance.run("killall -KILL qx-update");
        killed.wait();
        self.note("confirm");
        self.exits("confirm", &[0, 8, 9]);
    }

    fn no_network(&mut self) {
        self.publish_any();
        let after = self.random.part_of(self.update / 2);
        self.note(&format!(
            "apply; the network is gone after {after:.1?}, for a while"
        ));
        let applying = self.appliance.spawn(&updater("apply"));
        std::thread::sleep(after);
        self.appliance.ok("ip link set eth0 down");
        std::thread::sleep(Duration::from_secs(2));
        self.appliance.ok("ip link set eth0 up");
        self.ends(&applying.wait(), &[0, 1, 3, 5, 8, 9]);
    }

    fn no_space(&mut self) {
        self.publish_any();
        let after = self.random.part_of(self.update / 2);
        self.note(&format!("apply; the disk is full after {after:.1?}"));
        let applying = self.appliance.spawn(&updater("apply"));
        std::thread::sleep(after);
        self.appliance
            .run("dd if=/dev/zero of=/data/filler bs=1M 2>/dev/null; dd if=/dev/zero of=/data/filler2 bs=512 2>/dev/null");
        let ended = applying.wait();
        self.appliance.ok("rm -f /data/filler /data/filler2");
        self.ends(&ended, &[0, 1, 3, 5, 7, 8, 9]);
    }

    fn another_clock(&mut self) {
        self.publish_any();
        let date = ["1970-01-02 00:00", "2038-01-19 03:14", "2026-12-01 00:00"];
        let date = date[self.random.below(3) as usize];
        let after = self.random.part_of(self.update);
        self.note(&format!("apply; it is {date} after {after:.1?}"));
        let applying = self.appliance.spawn(&updater("apply"));
        std::thread::sleep(after);
        self.appliance.ok(&format!("date -u -s '{date}'"));
        self.ends(&applying.wait(), &[0, 1, 3, 5, 8, 9]);
        // What is published next is from now.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.appliance
            .ok(&format!("date -u -s @{}", now.unwrap().as_secs()));
    }

    fn crashing_service(&mut self) {
        self.publish_any();
        let after = self.random.part_of(self.update);
        self.note(&format!("apply; a service crashes after {after:.1?}"));
        let applying = self.appliance.spawn(&updater("apply"));
        std::thread::sleep(after);
        self.appliance
            .run("kill -KILL $(cat /run/quantix-console.pid)");
        let ended = applying.wait();
        // Where it crashes on the way back, the set that runs is not healthy, and a person is asked for.
        self.ends(&ended, &[0, 1, 3, 5, 8, 9, 10]);
        // Its service manager does not start it again.
        self.appliance
            .run("rc-service quantix-console status >/dev/null 2>&1 || rc-service quantix-console restart; sleep 1");
        if ended.code == 10 {
            self.note("reset");
            self.exits("reset", &[0]);
        }
    }

    fn a_person_types(&mut self) {
        self.publish_any();
        let typed = [
            "rollback",
            "apply",
            "reset",
            "check",
            "confirm",
            "recover",
            "data list",
        ];
        let typed = typed[self.random.below(typed.len() as u64) as usize];
        let after = self.random.part_of(self.update);
        self.note(&format!("apply; somebody types {typed} after {after:.1?}"));
        let applying = self.appliance.spawn(&updater("apply"));
        std::thread::sleep(after);
        let typed = self.appliance.spawn(&updater(typed));
        self.ends(&applying.wait(), &[0, 3, 5, 6, 8, 9]);
        typed.wait();
    }

    fn ends(&self, output: &Output, codes: &[i32]) {
        assert!(codes.contains(&output.code), "{codes:?}: {output:#?}");
    }
}

/// The updater that an init script would find, told that.
fn updater(arguments: &str) -> String {
    format!("p=/data/bin/qx-update; [ -x $p ] || p=qx-update; $p {arguments}")
}

/// The images of these walks: their factory sets accept the ledger as it is at first.
fn make_images() {
    static MADE: std::sync::Once = std::sync::Once::new();
    MADE.call_once(|| {
        let overlay = built::directory("soak-overlay");
        let etc = overlay.join("etc/qx-update");
        fs::create_dir_all(&etc).unwrap();
        let config = built::top().join("qemu/root/etc/qx-update/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
        config["data"] = json!([{
            "name": "ledger", "method": "files", "place": LEDGER, "services": ["quantix-console"], "user": "quantix",
            "schema": ["/bin/head", "-n", "1", "{place}"],
        }]);
        config["limits"] = json!({"retries": 1, "stall_timeout_s": 10});
        // As the script that sets the source finds it.
        let config = config.to_string().replace("\"sources\":", "\"sources\": ");
        fs::write(etc.join("config.json"), config).unwrap();
        for (image, (name, _)) in IMAGES.iter().enumerate() {
            let factory = factory(image);
            let [factory, overlay] =
                [factory.recipe.parent().unwrap(), &overlay].map(|dir| dir.to_str().unwrap());
            built::other_image(name, &["--factory", factory, "--overlay", overlay]);
        }
    });
}

/// The factory set of an image.
fn factory(image: usize) -> Release {
    static MADE: std::sync::OnceLock<Vec<Release>> = std::sync::OnceLock::new();
    let make = |(name, version): &(&str, &str)| {
        Release::derived(
            &format!("{name}-factory"),
            "factory",
            version,
            |recipe, _| {
                quick(recipe);
                recipe["data"] = json!([{"name": "ledger", "accepts_from": 1, "accepts_to": 1, "schema_after": 1}]);
            },
        )
    };
    MADE.get_or_init(|| IMAGES.iter().map(make).collect())[image].clone()
}

/// What is proved for a second is as good here as what is for eight.
fn quick(recipe: &mut Value) {
    for check in recipe["health"].as_array_mut().unwrap() {
        check["stable_s"] = json!(1);
    }
}

/// It brings the ledger to this schema from any earlier one.
fn moves_the_ledger(recipe: &mut Value, dir: &Path, schema: u64, fails: bool) {
    let script = dir.join("ledger/migrate");
    let ends = match fails {
        true => "echo 'half done' >>\"$1\"; exit 3",
        false => "exit 0",
    };
    let text = format!(
        "#!/bin/sh\nset -e\nrest=$(tail -n +2 \"$1\")\n{{ echo {schema}; echo \"$rest\"; }} >\"$1\"\n{ends}\n"
    );
    built::write_program(&script, text);
    let component =
        json!({"name": "ledger", "kind": "tree", "install_path": "migrations", "source": "ledger"});
    recipe["components"].as_array_mut().unwrap().push(component);
    recipe["data"] = json!([{
        "name": "ledger", "accepts_from": schema, "accepts_to": schema, "schema_after": schema,
        "migrates_from": 1,
    }]);
    recipe["migrate"] = json!({
        "run": ["migrations/migrate", "{data:ledger}"], "timeout_s": 60, "touches": ["ledger"],
    });
}

/// It brings an updater of its own, which is another file in each release.
fn brings_the_updater(recipe: &mut Value, dir: &Path, version: &str) {
    let mut program = fs::read(built::program("qx-update")).unwrap();
    // What follows the last section is nobody's.
    program.extend(version.as_bytes());
    built::write_program(&dir.join("qx-update"), program);
    let component = json!({"name": "qx-update", "kind": "bin", "install_path": "bin/qx-update", "source": "qx-update", "tool": true});
    recipe["components"].as_array_mut().unwrap().push(component);
}
