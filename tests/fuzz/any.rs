//! The target that `WEFT_FUZZ` names, under libFuzzer. Without a name it lists them, and with `seeds` as its name it
//! writes a corpus for each to begin with.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::{fs, path::Path, process, sync::OnceLock};
use weft_sidecar::fuzz::{TARGETS, Target};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

fn choose() -> &'static Target {
    let name = std::env::var("WEFT_FUZZ").unwrap_or_default();
    if let Some(target) = TARGETS.iter().find(|target| target.name == name) {
        return target;
    }
    for target in TARGETS {
        println!("{}", target.name);
        if name == "seeds" {
            let corpus = Path::new("corpus").join(target.name);
            fs::create_dir_all(&corpus).expect("a directory");
            for (number, seed) in target.seeds.iter().enumerate() {
                fs::write(corpus.join(format!("seed-{number}")), seed).expect("written");
            }
        }
    }
    process::exit(i32::from(name != "seeds"))
}

fuzz_target!(
    init: { CHOSEN.get_or_init(choose); },
    |bytes: &[u8]| (CHOSEN.get_or_init(choose).run)(bytes)
);
