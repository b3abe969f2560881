//! Passes the commit of the build to the program as `BUILD_COMMIT`. The name has no `AGENTAREA_`
//! prefix, because `cargo run` also passes the variable to the running program, which would read it
//! as configuration.

use std::process::Command;

#[expect(clippy::disallowed_methods, reason = "a build script has no configuration to read")]
fn main() {
    // A source archive has no repository; the environment can name the commit instead.
    let given = std::env::var("BUILD_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(from_git).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=BUILD_COMMIT={commit}");
    println!("cargo::rerun-if-env-changed=BUILD_COMMIT");
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/refs/heads");
    println!("cargo::rerun-if-changed=migrations");
}

fn from_git() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| commit.trim().to_owned()).filter(|commit| !commit.is_empty())
}
