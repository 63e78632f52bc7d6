//! The operator's command line: a client of the API over HTTPS, in the controller's own binary.
//!
//! | file | owns |
//! |---|---|
//! | `client` | HTTPS, retries, lists page by page |
//! | `stream` | server-sent events, taken up again where a connection broke |
//! | `watch` | following a job |
//! | `session` | what every command works with: names for ids, documents or tables, jobs followed |
//! | `failure` | what went wrong, in words and as an exit status |
//! | `table`, `units` | how things are shown and typed |
//! | `node` … `token` | the commands |
//! | `manual` | completion and man pages |
//!
//! Exit status: 0 done, 1 the API refused or the job failed, 2 the command line makes no sense, 3 no controller
//! answers.

mod client;
mod disk;
mod event;
mod failure;
mod grid;
mod image;
mod instance;
mod instance_request;
mod job;
mod manual;
mod node;
mod plan;
mod session;
mod statistics;
mod stream;
mod table;
mod token;
mod units;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap_complete::Shell;

use crate::config::FileFlag;
use failure::Result;

/// What an operator, or a tenant with its own token, may ask for.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Nodes: where machines run.
    Node(node::Arguments),
    /// Instances: customers' machines.
    Instance(Box<instance::Arguments>),
    /// Disks: volumes in the pools of nodes.
    Disk(disk::Arguments),
    /// Snapshots: the contents of an instance's disks at one moment.
    Snapshot(disk::SnapshotArguments),
    /// Images: what instances are made of.
    Image(image::Arguments),
    /// Jobs: what the controller is doing, and did.
    Job(job::Arguments),
    /// Events: what happened in the grid, in order.
    Event(event::Arguments),
    /// Show what the grid has, uses and has left.
    Capacity(grid::CapacityArguments),
    /// Show what would happen; nothing is changed.
    Plan(Box<plan::Arguments>),
    /// Tokens: who may call the API.
    Token(token::Arguments),
    /// Records of sanitization: what was done to storage before it was used again.
    Sanitization(grid::SanitizationArguments),
    /// Print the completion of a shell.
    #[command(
        after_help = "Example:\n  uvm-controller completion bash > /etc/bash_completion.d/uvm-controller"
    )]
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Print the man page, or write one for each command into a folder.
    #[command(after_help = "Example:\n  uvm-controller man /usr/local/share/man/man1")]
    Man {
        /// Folder, which must be there.
        directory: Option<PathBuf>,
    },
}

impl Command {
    /// Carries the command out. `file` says where the configuration is, `whole` is the command line it is part of.
    pub fn run(self, file: &FileFlag, whole: clap::Command) -> ExitCode {
        match self.carry_out(file, whole) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                if !failure.text.is_empty() {
                    // Whoever reads standard error may have gone away.
                    let _ = std::io::Write::write_fmt(
                        &mut std::io::stderr().lock(),
                        format_args!("{}\n", failure.message()),
                    );
                }
                ExitCode::from(failure.status)
            }
        }
    }

    fn carry_out(self, file: &FileFlag, whole: clap::Command) -> Result<()> {
        match self {
            Self::Node(arguments) => arguments.run(file),
            Self::Instance(arguments) => arguments.run(file),
            Self::Disk(arguments) => arguments.run(file),
            Self::Snapshot(arguments) => arguments.run(file),
            Self::Image(arguments) => arguments.run(file),
            Self::Job(arguments) => arguments.run(file),
            Self::Event(arguments) => arguments.run(file),
            Self::Capacity(arguments) => arguments.run(file),
            Self::Plan(arguments) => arguments.run(file),
            Self::Token(arguments) => arguments.run(file),
            Self::Sanitization(arguments) => arguments.run(file),
            Self::Completion { shell } => manual::completion(shell, whole),
            Self::Man { directory } => manual::pages(directory.as_deref(), whole),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "uvm-controller")]
    struct Whole {
        #[command(flatten)]
        file: FileFlag,
        #[command(subcommand)]
        command: Command,
    }

    fn parse(line: &str) -> std::result::Result<Whole, clap::Error> {
        Whole::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_sound() {
        Whole::command().debug_assert();
    }

    #[test]
    fn flags_stand_where_people_put_them() {
        for line in [
            "c --config f instance list --project shop --json --state s",
            "c instance --json list --limit 3 --in running",
            "c instance create web --image debian --vcpus 2 --memory 4GiB --disk 20GiB,500iops --disk 1TiB --watch",
            "c instance create --file request.json --project shop",
            "c instance create web --vcpus 1 --memory 512 --disk 64 --user ann --ssh-key k --group db:anti-affinity",
            "c instance change web --memory 8GiB --disk data:40GiB --no-restart --if-match 7",
            "c plan create web --vcpus 1 --memory 512 --disk 64",
            "c plan reboot web --output json",
            "c node add n1 --address /srv/n1 --numa 8:16GiB --numa 8:16GiB --storage 1TiB --license win=4:10",
            "c node label n1 rack=a old-",
            "c node enrol-token --ttl 2h",
            "c event list --watch --subject instances/1",
            "c token create portal --role tenant --project shop --ttl 30d",
            "c sanitization verify r.json --public-key k",
            "c disk create data --instance web --size 10GiB",
            "c job cancel 0192aaaa-0000-7000-8000-000000000000 -w",
            "c image add debian --registry https://r --repository debian --digest sha256:1",
            "c completion zsh",
            "c man",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_status_2() {
        for line in [
            "c instance create web",
            "c instance create web --vcpus 1 --memory 4GB --disk 20GiB",
            "c instance create web --vcpus 1 --memory 4GiB --disk 500iops",
            "c instance create web --vcpus 1 --memory 4GiB --disk 1GiB --ssh-key k",
            "c instance create web --vcpus 1 --memory 4GiB --disk 1GiB --group db",
            "c instance change web --disk 40GiB",
            "c instance change web --no-restart",
            "c plan change web",
            "c node add n1 --numa 8",
            "c node label n1",
            "c token create t --role king",
            "c image add debian --registry https://r --digest sha256:1",
            "c image add debian --digest sha256:1",
            "c instance list --limit 0",
            "c job list --kind nonsense",
            "c completion nonsense",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), i32::from(failure::USAGE), "{line}");
        }
    }

    #[test]
    fn every_command_and_flag_says_what_it_is() {
        let mut pending = vec![(Whole::command(), Vec::new())];
        let mut seen = 0;
        while let Some((command, mut inherited)) = pending.pop() {
            seen += 1;
            for argument in command.get_arguments() {
                let id = argument.get_id();
                assert!(argument.get_help().is_some(), "{}: {id}", command.get_name());
                // One of the same id would silently take the place of the flag of all commands.
                assert!(!inherited.contains(id), "{}: {id}", command.get_name());
            }
            inherited.extend(
                command.get_arguments().filter(|flag| flag.is_global_set()).map(|flag| flag.get_id().clone()),
            );
            for child in command.get_subcommands() {
                assert!(child.get_about().is_some(), "{}", child.get_name());
                pending.push((child.clone(), inherited.clone()));
            }
        }
        assert!(seen > 60, "{seen}");
    }
}
