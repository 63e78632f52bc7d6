//! What works without a controller, judged by those who read it.

use std::process::Command;

use crate::support::run;

#[test]
fn every_command_has_a_page_that_groff_reads() {
    let (nowhere, pages) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let said = run(nowhere.path(), &format!("man {}", pages.path().display()));
    assert_eq!(said.status, 0, "{said:?}");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(pages.path()).unwrap() {
        let path = entry.unwrap().path();
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        let read = Command::new("groff")
            .args(["-Kutf8", "-man", "-Tutf8", "-ww", "-z"])
            .arg(&path)
            .output()
            .expect("groff");
        assert!(read.status.success() && read.stderr.is_empty(), "{path:?} {read:?}");
    }
    for page in ["uvm-controller.1", "uvm-controller-instance-create.1", "uvm-controller-serve.1"] {
        assert!(names.iter().any(|name| name == page), "{page} in {names:?}");
    }
    let whole = run(nowhere.path(), "man");
    assert!(whole.status == 0 && whole.out.contains(".TH uvm-controller 1"), "{whole:?}");
}

#[test]
fn bash_completes_commands_and_flags() {
    let folder = tempfile::tempdir().unwrap();
    let said = run(folder.path(), "completion bash");
    assert_eq!(said.status, 0, "{said:?}");
    let script = folder.path().join("completion");
    std::fs::write(&script, &said.out).unwrap();
    let complete = |words: &str| {
        let program = format!(
            "source {}; COMP_WORDS=(uvm-controller {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _uvm__controller uvm-controller \"${{COMP_WORDS[COMP_CWORD]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let output = Command::new("bash").args(["--norc", "-c", &program]).output().expect("bash");
        assert!(output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(complete("inst"), "instance\n");
    assert_eq!(complete("instance crea"), "create\n");
    assert_eq!(complete("instance create --mem"), "--memory\n");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let said = run(folder.path(), &format!("completion {shell}"));
        assert!(said.status == 0 && said.out.contains("uvm-controller"), "{shell}");
    }
}
