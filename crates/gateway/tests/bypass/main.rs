//! The bypass battery: what an attacker behind a door can try, in one table that runs twice.
//!
//! ```text
//! case ─┬─► the real gateway ──► nothing arrives, and the refusal is on record
//!       └─► an open reference ─► the same attack goes through, or the case proves nothing
//! ```
//!
//! 1. Both sides get the same bytes over the same kind of socket, in a world of their own.
//! 2. A case holds only if what held it is the guard it names, and if what is permitted still
//!    gets through afterwards.
//! 3. Nothing but 127.0.0.0/8 is reached: other addresses are judged by what is on record as
//!    dialled, and the reference puts the forbidden server in their place.
//!
//! Out of scope: fields of a server's own by which it lets itself be told another method, path or
//! host; which of them a server believes is known to nobody but the server (the usual ones are in
//! the table). What needs a sandbox (datagrams, raw sockets,
//! abstract sockets, memory) is tried in the product's own end-to-end tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod lab;
mod reference;
mod tls;
mod world;

use lab::{Attack, Case, Lab, Side, fill};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The least number of cases; a table that shrinks is a defect.
const CASES_MIN: usize = 60;
/// Worlds at once.
const WORLDS: usize = 6;

async fn attack(lab: &Arc<Lab>, attack: &Attack) {
    match attack {
        Attack::Says(text) => lab.send(&fill(text, lab.ports)).await,
        Attack::Sends(make) => lab.send(&make(lab.ports)).await,
        Attack::Does(steps) => steps(Arc::clone(lab)).await,
    }
}

/// What held it at the gateway, and whether it tripped at the reference.
async fn try_it(case: &'static Case) -> (Result<String, String>, Result<(), String>) {
    let lab = Lab::new(Side::Real, case.setup).await;
    attack(&lab, &case.attack).await;
    let held = lab.held(&case.trip, &case.due).await;
    let lab = Lab::new(Side::Reference, case.setup).await;
    attack(&lab, &case.attack).await;
    (held, lab.falls(&case.trip).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_case_is_held_by_the_gateway_and_trips_on_the_open_reference() {
    let only = std::env::var("BYPASS_ONLY").unwrap_or_default();
    let all: Vec<&'static Case> = cases::all().filter(|c| c.name.contains(&only)).collect();
    let slots = Arc::new(Semaphore::new(WORLDS));
    let mut running = JoinSet::new();
    for (nth, case) in all.iter().copied().enumerate() {
        let slots = Arc::clone(&slots);
        running.spawn(async move {
            let _slot = slots.acquire_owned().await.unwrap();
            (nth, try_it(case).await)
        });
    }
    let mut results = running.join_all().await;
    results.sort_by_key(|(nth, _)| *nth);
    let mut wrong = Vec::new();
    println!("{:<58} | {:<76} | reference", "case", "held by");
    for (nth, (held, fell)) in &results {
        let name = all[*nth].name;
        let words = held.as_deref().unwrap_or("NOT HELD");
        let words: String = words.chars().take(76).collect();
        println!("{name:<58} | {words:<76} | {}", if fell.is_ok() { "tripped" } else { "HELD" });
        wrong.extend(held.as_ref().err().map(|e| format!("{name}: {e}")));
        wrong.extend(fell.as_ref().err().map(|e| format!("{name}: {e}")));
    }
    println!("{} cases, {} failures", results.len(), wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(!only.is_empty() || results.len() >= CASES_MIN, "only {} cases", results.len());
    let mut names: Vec<&str> = all.iter().map(|c| c.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all.len(), "two cases have one name");
}

/// A case over TLS holds for nothing if what is decent does not get through there.
#[tokio::test(flavor = "multi_thread")]
async fn a_decent_request_gets_through_where_attacks_over_tls_do_not() {
    let lab = Lab::new(Side::Real, cases::tunnels::trusted).await;
    cases::tunnels::request(Arc::clone(&lab), cases::tunnels::DECENT).await;
    lab::until(|| lab.good.heard(lab::MARK)).await;
    assert!(lab.good.heard(lab::MARK), "{}", lab.good.text());
}
