//! The exploration: breadth first, so that what leads to a violation is as short as can be.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write;

use qx_update::model::phase::Phase;
use qx_update::model::record::{decode, encode};

use crate::appliance::{BY_PERSONS, Command, Fault, Plan, Run};
use crate::world::{Scene, World};

/// How far it goes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Power cuts, kills and failed steps.
    pub faults: usize,
    /// Commands that persons give; boots are no such.
    pub commands: usize,
    /// How many of both there are together.
    pub together: usize,
}

impl Bounds {
    fn one_more_fault(&self, faults: usize, commands: usize) -> bool {
        faults < self.faults && faults + commands < self.together
    }

    fn one_more_command(&self, faults: usize, commands: usize) -> bool {
        commands < self.commands && faults + commands < self.together
    }
}

/// What was explored.
#[derive(Debug, Default)]
pub struct Counted {
    /// Distinct states, those in the midst of a command included.
    pub states: usize,
    /// Steps, those that led to a known state included.
    pub transitions: usize,
    /// The states from which commands were given.
    pub resting: usize,
}

/// A state from which a command can be given.
struct Node {
    world: World,
    faults: usize,
    commands: usize,
    /// How it was reached: from where, and what was done.
    from: Option<(usize, String)>,
}

struct Explorer<'s> {
    scene: &'s Scene,
    bounds: Bounds,
    nodes: Vec<Node>,
    /// The nodes of a world: one for each way in which it was reached with less of one bound and more of the other.
    known: HashMap<World, Vec<usize>>,
    queue: VecDeque<usize>,
    states: HashSet<World>,
    counted: Counted,
}

/// Explores everything within the bounds.
///
/// # Errors
/// The first property that does not hold, and the steps that lead there.
pub fn explore(scene: &Scene, bounds: Bounds) -> Result<Counted, String> {
    let mut explorer = Explorer {
        scene,
        bounds,
        nodes: Vec::new(),
        known: HashMap::new(),
        queue: VecDeque::new(),
        states: HashSet::new(),
        counted: Counted::default(),
    };
    explorer.reach(World::new(), 0, 0, || (0, String::new()))?;
    explorer.nodes[0].from = None;
    while let Some(at) = explorer.queue.pop_front() {
        explorer.expand(at)?;
    }
    explorer.counted.states = explorer.states.len();
    explorer.counted.resting = explorer.known.len();
    Ok(explorer.counted)
}

impl Explorer<'_> {
    /// Notes a state that something rests in, and what must hold there.
    fn reach(
        &mut self,
        mut world: World,
        faults: usize,
        commands: usize,
        from: impl FnOnce() -> (usize, String),
    ) -> Result<(), String> {
        world.forget_boots();
        let seen = self.known.entry(world.clone()).or_default();
        let no_worse = |at: &usize| {
            let node = &self.nodes[*at];
            node.faults <= faults && node.commands <= commands
        };
        if seen.iter().any(no_worse) {
            return Ok(());
        }
        let (new, at) = (seen.is_empty(), self.nodes.len());
        seen.push(at);
        self.nodes.push(Node {
            world,
            faults,
            commands,
            from: Some(from()),
        });
        self.queue.push_back(at);
        match new {
            true => self.settles(at),
            false => Ok(()),
        }
    }

    /// Without further faults a boot ends with one complete set and its data, and a second one changes nothing. The record
    /// is what its copy on the medium says.
    fn settles(&mut self, at: usize) -> Result<(), String> {
        let world = &self.nodes[at].world;
        if let Some(record) = world.record() {
            let read = encode(record, 1).and_then(|bytes| decode(&bytes));
            if read.as_ref().map(|(_, read)| read) != Ok(record) {
                return Err(self.violation(at, "the record is not what was written", "", &[]));
            }
        }
        let ends: &[Command] = match world.on && world.hidden.is_none() {
            // Without a reboot a kill is made good by the next command, unless a slot had to be hidden until then.
            true => &[Command::Boot, Command::Confirm],
            false => &[Command::Boot],
        };
        for command in ends {
            let world = &self.nodes[at].world;
            let once = Run::of(self.scene, world, *command, Plan::default());
            let wrong = once
                .wrong
                .clone()
                .or_else(|| self.unsettled(world, &once.world));
            let wrong = wrong.or_else(|| {
                let twice = Run::of(self.scene, &once.world, *command, Plan::default());
                let same = twice.world.medium() == once.world.medium();
                let what = "convergence: done again, it changes something".to_owned();
                twice.wrong.or((!same).then_some(what))
            });
            if let Some(wrong) = wrong {
                return Err(self.violation(at, &wrong, &format!("{command:?}"), &once.trace));
            }
        }
        Ok(())
    }

    fn unsettled(&self, before: &World, world: &World) -> Option<String> {
        let wrong = |what: &str| Some(format!("convergence: {what}"));
        let Some(record) = world.record() else {
            return wrong("there is no record");
        };
        if !matches!(record.phase(), Phase::Idle(_) | Phase::Staged { .. }) {
            return wrong(&format!("it ends in {}", record.phase().name()));
        }
        let idle = record.idle_when_ended();
        if !world.link.selects(idle.active.set) || !world.verifies(self.scene, &idle.active) {
            return wrong("what is recorded to run is not what the link selects");
        }
        if world.up != Some(self.scene.by_digest(idle.active.manifest)) {
            return wrong("what is recorded to run does not run");
        }
        // What a way back that was not proved has told a person stays told.
        let told = |world: &World| world.record()?.idle_when_ended().trouble;
        match told(world) {
            Some(trouble) if trouble.needs_person && told(before).is_none() => {
                wrong("a person is needed")
            }
            _ => None,
        }
    }

    /// Every command from here, with every fault at every step.
    fn expand(&mut self, at: usize) -> Result<(), String> {
        let (faults, commands, on) = {
            let node = &self.nodes[at];
            (node.faults, node.commands, node.world.on)
        };
        let persons: &[Command] = match on && self.bounds.one_more_command(faults, commands) {
            true => &BY_PERSONS,
            false => &[],
        };
        self.run(at, Command::Boot, faults, commands)?;
        for command in persons {
            self.run(at, *command, faults, commands + 1)?;
        }
        Ok(())
    }

    fn run(
        &mut self,
        at: usize,
        command: Command,
        faults: usize,
        commands: usize,
    ) -> Result<(), String> {
        let plain = self.carry_out(at, command, Plan::default(), faults, commands)?;
        for number in plain.unlocked {
            // Nobody gives commands while it boots. (With faults before them it is the same.)
            let allowed = faults == 0 && self.bounds.one_more_command(faults, commands);
            if command != Command::Boot && allowed {
                for other in BY_PERSONS {
                    let plan = Plan {
                        other: Some((number, other)),
                        ..Plan::default()
                    };
                    self.carry_out(at, command, plan, faults, commands + 1)?;
                }
            }
        }
        if self.bounds.one_more_fault(faults, commands) {
            for number in 0..plain.steps {
                for fault in [Fault::Missed, Fault::Unsure] {
                    let plan = Plan {
                        fault: Some((number, fault)),
                        ..Plan::default()
                    };
                    self.carry_out(at, command, plan, faults + 1, commands)?;
                }
            }
        }
        Ok(())
    }

    /// One run: the state in which it ends, and those which a kill or a power cut after each of its steps leaves.
    fn carry_out(
        &mut self,
        at: usize,
        command: Command,
        plan: Plan,
        faults: usize,
        commands: usize,
    ) -> Result<Carried, String> {
        let run = Run::of(self.scene, &self.nodes[at].world, command, plan);
        let name = format!("{command:?}");
        if let Some(wrong) = &run.wrong {
            return Err(self.violation(at, wrong, &name, &run.trace));
        }
        self.counted.transitions += run.steps;
        let told = |end: &str, steps: &[&str]| {
            let mut text = format!("{name}\n");
            for step in steps {
                let _ = writeln!(text, "    {step}");
            }
            format!("{text}{end}")
        };
        let end = run.world.clone();
        self.reach(end, faults, commands, || (at, told("", &run.trace)))?;
        for (steps, world) in &run.left {
            self.states.insert(world.clone());
            if self.bounds.one_more_fault(faults, commands) {
                let steps = &run.trace[..*steps];
                let text = || (at, told("-- the power goes\n", steps));
                self.reach(world.cut(), faults + 1, commands, text)?;
                // At boot nobody kills it.
                if command != Command::Boot {
                    let text = || (at, told("-- it is killed\n", steps));
                    self.reach(world.killed(), faults + 1, commands, text)?;
                }
            }
        }
        Ok(Carried {
            steps: run.steps,
            unlocked: run.unlocked,
        })
    }

    /// The path to a node, and what was done there.
    fn violation(&self, at: usize, wrong: &str, command: &str, trace: &[&str]) -> String {
        let mut path = Vec::new();
        let mut node = &self.nodes[at];
        while let Some((from, done)) = &node.from {
            path.push(done.clone());
            node = &self.nodes[*from];
        }
        path.reverse();
        let mut text = format!("{}: violated: {wrong}\n{}", self.scene.name, path.concat());
        let _ = writeln!(text, "{command}");
        for step in trace {
            let _ = writeln!(text, "    {step}");
        }
        text
    }
}

struct Carried {
    steps: usize,
    unlocked: Vec<usize>,
}
