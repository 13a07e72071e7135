//! What keeps calls alive and users unharmed when services fail, hang, reset, slow down or restart.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod breaking;
mod budget;
mod deadlines;
mod health;
mod hedging;
mod paths;
mod restarts;
mod retries;
mod stage;
mod timeouts;
