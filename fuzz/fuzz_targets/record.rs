//! The record of what runs and what is going on.
//!
//! - What is accepted has the checksum that is computed here: no flipped bit gets through.
//! - What is accepted can be written, and is the same when it is read again.
//! - No panic; memory in proportion to the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qx_release::digest::Digest;
use qx_update::model::record;
use qx_update_fuzz::bounded;

fuzz_target!(|data: &[u8]| {
    // The first byte says whether the rest comes with its checksum, which no fuzzer guesses.
    let Some((first, text)) = data.split_first() else {
        return;
    };
    let bytes = match first % 2 {
        0 => text.to_vec(),
        _ => [text, b"\n", Digest::of(text).to_string().as_bytes(), b"\n"].concat(),
    };
    match bounded(bytes.len(), || record::decode(&bytes)) {
        Ok((sequence, read)) => {
            let line = bytes
                .split(|byte| *byte == b'\n')
                .next()
                .unwrap_or_default();
            let rest = bytes[line.len()..].trim_ascii();
            assert_eq!(rest, Digest::of(line).to_string().as_bytes());
            if let Ok(written) = record::encode(&read, sequence) {
                assert_eq!(record::decode(&written), Ok((sequence, read)));
            }
        }
        Err(why) => assert!(!why.is_empty()),
    }
});
