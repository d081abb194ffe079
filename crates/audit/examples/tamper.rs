//! Carries out every attack of the tamper matrix and prints who noticed: `cargo xtask tamper`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "../tests/attacks/mod.rs"]
mod attacks;

fn main() {
    let folder = std::env::temp_dir().join(format!("nanoclaw-tamper-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let rows = attacks::run(&folder);
    std::fs::remove_dir_all(&folder).unwrap();
    let row = |row: &attacks::Row| {
        serde_json::json!({"attack": row.attack, "chain": row.chain,
            "checkpoint": row.checkpoint, "witness": row.witness})
    };
    println!("{}", serde_json::Value::from(rows.iter().map(row).collect::<Vec<_>>()));
}
