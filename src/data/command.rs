//! A data set that has commands of its own: a database server's.

use super::aside::Aside;
use crate::model::dataset::{Commands, Side};
use crate::system::log::Log;
use qx_release::error::Result;

pub(super) fn copy(aside: &Aside, commands: &Commands, side: Side, log: &mut Log) -> Result<()> {
    copy_by(aside, commands, &commands.copy, side, log)
}

pub(super) fn copy_in_use(
    aside: &Aside,
    commands: &Commands,
    side: Side,
    log: &mut Log,
) -> Result<Option<String>> {
    let vector = match aside.set.copy_in_use.is_empty() {
        true => &commands.copy,
        false => &aside.set.copy_in_use,
    };
    // Some cannot copy what is in use: then nothing is rehearsed.
    let copied = copy_by(aside, commands, vector, side, log);
    Ok(copied.err().map(|e| e.chain()))
}

fn copy_by(
    aside: &Aside,
    commands: &Commands,
    vector: &[String],
    side: Side,
    log: &mut Log,
) -> Result<()> {
    let copy = commands.copy(aside.id, side);
    // What an earlier try has left.
    aside.run(&commands.drop, ["", &copy, ""], log)?;
    aside.run(vector, [&aside.set.place, &copy, ""], log)
}

pub(super) fn exchange(
    aside: &Aside,
    commands: &Commands,
    from: Side,
    log: &mut Log,
) -> Result<()> {
    let copy = commands.copy(aside.id, from);
    let kept = commands.copy(aside.id, from.other());
    let places = [&*aside.set.place, &copy, &kept];
    aside.run(&commands.exchange, places, log)
}

pub(super) fn remove(aside: &Aside, commands: &Commands, log: &mut Log) -> Result<()> {
    for side in [Side::Next, Side::Previous] {
        let copy = commands.copy(aside.id, side);
        aside.run(&commands.drop, ["", &copy, ""], log)?;
    }
    Ok(())
}
