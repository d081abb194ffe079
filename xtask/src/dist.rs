//! `cargo xtask dist`: what a person downloads, and the proof that anyone can make the same bytes.
//!
//! ```text
//! release build ─► binary, manual pages, completions, bill, licences ─► tarball ─► SHA256SUMS
//! two clones of HEAD ─► the same twice ─► cmp
//! ```
//!
//! Invariants:
//! 1. Every byte comes from the commit, the pinned toolchain and the C compiler; none from the
//!    folder, the user or the clock.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::bom::Parts;
use crate::cross;
use crate::product::{Profile, build_binary, source_date_epoch, target_of};
use crate::repo::{Failure, Outcome, Repo, at, capture, host_target, run, step, warn};
use crate::setup;
use crate::tarball::{Archive, DOCUMENT, PROGRAM};

/// Documents that go with the binary.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "THREAT_MODEL.md",
    "SPECIFICATION.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
];
/// What is installed elsewhere than the binary, and the name it has in the tarball.
const FOR_ELSEWHERE: &[(&str, &str)] = &[("crates/sandbox/apparmor/nanoclaw", "apparmor/nanoclaw")];
/// Shells that the product writes completions for, and the customary file names.
const SHELLS: &[(&str, &str)] =
    &[("bash", "nanoclaw.bash"), ("zsh", "_nanoclaw"), ("fish", "nanoclaw.fish")];

/// `cargo xtask dist [--target T] [--check-reproducible]`.
pub(crate) fn dist(repo: &Repo, arguments: &[String]) -> Outcome {
    const CHECK: &str = "--check-reproducible";
    let target = target_of(arguments, &[CHECK])?;
    setup::for_building(repo, &target)?;
    if cross::needs_zig(&target) && !cross::is_cross(&target) {
        warn("no musl-gcc: these will not be the bytes of a release");
    }
    if arguments.iter().any(|argument| argument == CHECK) {
        return check_reproducible(repo, &target);
    }
    let tarball = make(repo, &target)?;
    println!("{}", tarball.display());
    Ok(())
}

/// Builds the tarball of one checkout; returns its path.
fn make(repo: &Repo, target: &str) -> Outcome<PathBuf> {
    let version = repo.version()?;
    let moment = source_date_epoch(repo)?;
    let name = format!("nanoclaw-{version}-{target}");
    let binary = build_binary(repo, target, Profile::Release)?;
    step(format!("dist: {name}.tar.gz"));
    let mut archive = Archive::default();
    archive.add(format!("{name}/nanoclaw"), PROGRAM, fs::read(&binary).map_err(at(&binary))?);
    for document in DOCUMENTS {
        let path = repo.root.join(document);
        archive.add(format!("{name}/{document}"), DOCUMENT, fs::read(&path).map_err(at(&path))?);
    }
    for (from, to) in FOR_ELSEWHERE {
        let path = repo.root.join(from);
        archive.add(format!("{name}/{to}"), DOCUMENT, fs::read(&path).map_err(at(&path))?);
    }
    let runnable = if cross::is_cross(target) {
        build_binary(repo, &host_target(), Profile::Release)?
    } else {
        binary
    };
    add_generated(repo, &mut archive, &name, &runnable)?;
    let parts = Parts::of_product(repo, target)?;
    let lock = sha256(repo, &repo.root.join("Cargo.lock"))?;
    let bill = parts.bill(&version, &lock, moment)?;
    archive.add(format!("{name}/THIRD-PARTY-LICENCES.txt"), DOCUMENT, parts.licence_texts()?);
    archive.add(format!("{name}/nanoclaw.cdx.json"), DOCUMENT, bill.clone());

    let dist = repo.root.join("dist");
    fs::create_dir_all(&dist).map_err(at(&dist))?;
    let tarball = dist.join(format!("{name}.tar.gz"));
    archive.write_gz(repo, &tarball, moment)?;
    let bill_path = dist.join(format!("{name}.cdx.json"));
    fs::write(&bill_path, bill).map_err(at(&bill_path))?;
    write_checksums(repo, &dist)?;
    Ok(tarball)
}

/// Manual pages and completions, which the product writes itself from its command table. A tarball
/// without them is not one: the packages made of it would miss files.
fn add_generated(repo: &Repo, archive: &mut Archive, name: &str, binary: &Path) -> Outcome {
    let man = repo.target_dir.join("man");
    if man.exists() {
        fs::remove_dir_all(&man).map_err(at(&man))?;
    }
    fs::create_dir_all(&man).map_err(at(&man))?;
    run(repo.command(binary).arg("__man").arg(&man))?;
    let pages = archive.add_folder(&format!("{name}/man/man1"), &man)?;
    something("__man DIR", pages)?;
    for (shell, file) in SHELLS {
        let text = capture(repo.command(binary).args(["completions", shell]))?;
        something(&format!("completions {shell}"), text.trim().len())?;
        archive.add(format!("{name}/completions/{file}"), DOCUMENT, text);
    }
    Ok(())
}

/// Refuses to go on when a command of the product wrote nothing.
fn something(command: &str, amount: usize) -> Outcome {
    if amount > 0 {
        return Ok(());
    }
    Err(Failure::new(format!(
        "`nanoclaw {command}` succeeded but wrote nothing, so the tarball would lack it; run it \
         by hand and mend the command (crates/nanoclaw/src/commands/manual.rs, args.rs)"
    )))
}

/// `SHA256SUMS` over everything in `dist/`, for `sha256sum --check`.
fn write_checksums(repo: &Repo, dist: &Path) -> Outcome {
    let mut names = Vec::new();
    for entry in fs::read_dir(dist).map_err(at(dist))? {
        let name = entry.map_err(at(dist))?.file_name().to_string_lossy().into_owned();
        if name != "SHA256SUMS" {
            names.push(name);
        }
    }
    names.sort();
    let sums = capture(repo.command("sha256sum").current_dir(dist).arg("--").args(&names))?;
    let path = dist.join("SHA256SUMS");
    fs::write(&path, sums).map_err(at(&path))
}

fn sha256(repo: &Repo, path: &Path) -> Outcome<String> {
    let line = capture(repo.command("sha256sum").arg(path))?;
    let digest = line.split_whitespace().next().map(str::to_owned);
    digest.ok_or_else(|| Failure::new(format!("sha256sum printed no digest of {}", path.display())))
}

/// Clones HEAD into two folders whose names have different lengths, builds both and compares.
fn check_reproducible(repo: &Repo, target: &str) -> Outcome {
    if !capture(repo.command("git").args(["status", "--porcelain"]))?.is_empty() {
        warn("uncommitted changes are not part of what is compared: HEAD is");
    }
    let base = env::temp_dir().join(format!("nanoclaw-reproducible-{}", std::process::id()));
    let mut tarballs = Vec::new();
    for folder in ["one", "two/in/a/longer/place"] {
        let root = base.join(folder);
        fs::create_dir_all(&root).map_err(at(&root))?;
        step(format!("clone HEAD into {}", root.display()));
        let mut clone = repo.command("git");
        clone.args(["clone", "--quiet", "--no-local"]).arg(&repo.root).arg(&root);
        run(&mut clone)?;
        let head = capture(repo.command("git").args(["rev-parse", "HEAD"]))?;
        let copy = Repo { target_dir: root.join("target"), root };
        run(copy.command("git").args(["checkout", "--quiet", "--detach", head.trim()]))?;
        setup::for_building(&copy, target)?;
        tarballs.push(make(&copy, target)?);
    }
    let digests =
        tarballs.iter().map(|path| sha256(repo, path)).collect::<Outcome<Vec<String>>>()?;
    if digests.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(Failure::new(format!(
            "the two builds differ; compare what is kept in {}:\n       {}",
            base.display(),
            digests.join("\n       ")
        )));
    }
    fs::remove_dir_all(&base).map_err(at(&base))?;
    step(format!("reproducible: both tarballs are sha256 {}", digests.concat().split_at(64).0));
    Ok(())
}
