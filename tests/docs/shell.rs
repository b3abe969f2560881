//! A shell that keeps its variables from one command to the next.

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::servers::DEADLINE;

/// Retries until there is a result, up to the deadline.
pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return Some(found);
        }
        if begin.elapsed() > DEADLINE {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) struct Shell {
    child: Child,
    input: ChildStdin,
    printed: Arc<Mutex<String>>,
    /// The length of the output already read.
    seen: usize,
    commands: usize,
}

impl Shell {
    /// A shell in `folder` with only these variables.
    pub(crate) fn start(folder: &Path, variables: &[(String, String)]) -> Self {
        let mut child = Command::new("bash")
            .args(["--noprofile", "--norc"])
            .current_dir(folder)
            .env_clear()
            .envs(variables.iter().cloned())
            // Its background processes end with it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let printed = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&printed);
        thread::spawn(move || {
            let (mut bytes, mut whole) = ([0; 4096], Vec::new());
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                whole.extend_from_slice(&bytes[..count]);
                *shared.lock() = String::from_utf8_lossy(&whole).into_owned();
            }
        });
        let mut shell = Self { child, input, printed, seen: 0, commands: 0 };
        shell.send("exec 2>&1\nset -o pipefail");
        shell
    }

    fn send(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// Output not yet read.
    pub(crate) fn unseen(&self) -> String {
        self.printed.lock()[self.seen..].to_owned()
    }

    /// Marks all output as read.
    pub(crate) fn see(&mut self) {
        self.seen = self.printed.lock().len();
    }

    /// Runs a command; returns its output and its exit code.
    pub(crate) fn run(&mut self, command: &str) -> Result<(String, i32), String> {
        self.commands += 1;
        let end = format!("\n-- end of command {} with ", self.commands);
        // The next command can read the exit code, as at a prompt.
        let told = end.replace('\n', "\\n");
        self.send(&format!(
            "{{ {command}\n}} </dev/null\nstatus=$?; printf '{told}%d.\\n' $status; (exit $status)"
        ));
        let found = eventually(|| {
            let text = self.unseen();
            let (printed, rest) = text.split_once(&end)?;
            let code = rest.split_once(".\n")?.0.parse().unwrap();
            Some((printed.to_owned(), code))
        });
        let found = found.ok_or_else(|| {
            format!("it did not end within {DEADLINE:?} and printed:\n{}", self.unseen())
        })?;
        self.see();
        Ok(found)
    }

    /// Starts a command that does not end by itself.
    pub(crate) fn begin(&mut self, command: &str) {
        self.send(command);
    }

    /// Interrupts the running command, like Ctrl-C.
    pub(crate) fn interrupt(&self) {
        let parent = self.child.id().to_string();
        let sent = Command::new("pkill").args(["-INT", "-P", &parent]).status().unwrap();
        assert!(sent.success(), "nothing runs in this shell");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _gone = Command::new("kill").args(["-KILL", "--", &group]).status().is_err();
        let _reaped = self.child.wait().is_ok();
    }
}

#[test]
fn a_shell_keeps_its_variables_and_tells_the_code_of_each_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    let mut shell = Shell::start(folder.path(), &path);
    assert_eq!(shell.run("A='b c'; echo \"$A\"").unwrap(), ("b c\n".to_owned(), 0));
    assert_eq!(shell.run("printf %s \"$A\"; false | true").unwrap(), ("b c".to_owned(), 1));
    assert_eq!(shell.run("echo $?").unwrap(), ("1\n".to_owned(), 0));
}
