//! The appliance's configuration.
//!
//! - What is accepted has its names.
//! - No panic; memory in proportion to the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qx_update::model::config::Config;
use qx_update_fuzz::bounded;

fuzz_target!(|data: &[u8]| {
    if let Ok(config) = bounded(data.len(), || Config::parse(data)) {
        assert!(!config.product.as_str().is_empty() && !config.channel.as_str().is_empty());
    }
});
