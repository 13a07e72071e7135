//! Some thousands of mutated seeds for each target, the same in every run.

use super::TARGETS;
use fastrand::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Inputs for each target, unless `WEFT_FUZZ_ROUNDS` says otherwise.
const ROUNDS: usize = 4_000;
/// Where chance begins, unless `WEFT_FUZZ_SEED` says otherwise: another seed finds other things.
const SEED: u64 = 0x5eed;
/// No input is longer.
const LONGEST: usize = 2_048;

/// What parsers stumble over.
const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\n\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\"",
    b"\\\"",
    b",",
    b", ",
    b";",
    b"=",
    b" ",
    b"\t",
    b":",
    b"%",
    b"%%",
    b"%41",
    b"%2e",
    b"%2f",
    b"%25",
    b"&",
    b"?",
    b"#",
    b"/",
    b"//",
    b"/../",
    b"@",
    b"*",
    b"-",
    b"0",
    b"-1",
    b"9",
    b"4294967295",
    b"2147483648",
    b"18446744073709551615",
    b"99999999999999999999",
    b"no-store",
    b"private",
    b"W/\"",
    b"chunked",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b\r\n",
    b" HTTP/1.1\r\n",
    b"0\r\n\r\n",
    b"q=0.5",
    b"bytes=",
    b"(",
    b")",
    b"GMT",
    b"x-a: ",
    b"\nx-a: 1",
    b"---\n",
    b"{",
    b"[",
    b"&a",
    b"*a",
    b"!!",
    b"|\n",
    b"? ",
];

/// Changes a few things.
fn mutate(rng: &mut Rng, input: &mut Vec<u8>, seeds: &[&[u8]]) {
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(0..=input.len());
        let end = rng.usize(at..=input.len().min(at + 24));
        match rng.u8(0..8) {
            0 if at < input.len() => input[at] ^= 1 << rng.u8(0..8),
            1 if at < input.len() => input[at] = rng.u8(..),
            2 => drop(input.drain(at..end)),
            3 => {
                let copy = input[at..end].to_vec();
                let to = rng.usize(0..=input.len());
                input.splice(to..to, copy);
            }
            4 => input.truncate(input.len() - rng.usize(0..=input.len().min(8))),
            5 => {
                let other = seeds[rng.usize(0..seeds.len())];
                let from = rng.usize(0..=other.len());
                let to = rng.usize(from..=other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            _ => {
                let token = TOKENS[rng.usize(0..TOKENS.len())];
                input.splice(at..at, token.iter().copied());
            }
        }
        input.truncate(LONGEST);
    }
}

fn told(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What one target says of all its inputs: the first for which it does not hold.
fn tried(target: &super::Target) -> Result<(), String> {
    let holds = |input: &[u8]| {
        let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
        result.map_err(|_| format!("{} does not hold for b\"{}\"", target.name, input.escape_ascii()))
    };
    target.seeds.iter().try_for_each(|seed| holds(seed))?;
    let mut rng = Rng::with_seed(told("WEFT_FUZZ_SEED").unwrap_or(SEED));
    let rounds = told("WEFT_FUZZ_ROUNDS").and_then(|rounds| rounds.try_into().ok()).unwrap_or(ROUNDS);
    // Policy takes its time.
    let rounds = if target.name == "policy" { rounds / 8 } else { rounds };
    let mut input = Vec::new();
    for round in 0..rounds {
        // Some inputs go on from the one before.
        if round % 3 == 0 || input.is_empty() {
            input = target.seeds[rng.usize(0..target.seeds.len())].to_vec();
        }
        mutate(&mut rng, &mut input, target.seeds);
        holds(&input)?;
    }
    Ok(())
}

#[test]
fn what_must_hold_holds_for_seeds_and_for_thousands_of_mutations_of_them() {
    let wrong: Vec<String> = TARGETS.iter().filter_map(|target| tried(target).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn targets_have_names_of_their_own() {
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TARGETS.len());
}
