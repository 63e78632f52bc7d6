//! `token`: who may call the API.

use std::time::Duration;

use super::client::Method;
use super::failure::Result;
use super::session::{Flags, Follow, Limit, Scope, Session};
use super::table::{Details, Table};
use super::units::{age, now, parse_duration, parse_word, time, word};
use crate::config::FileFlag;
use crate::model::{IssuedToken, NewToken, Role, Token};

/// `token …`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List tokens, without their secrets.
    List(Limit),
    /// Issue a token. Its secret is printed once and kept nowhere.
    #[command(
        after_help = "Examples:\n  uvm-controller token create portal --role tenant --project shop\n  \
        uvm-controller token create backup --role operator --ttl 30d"
    )]
    Create {
        /// What it is for, in words.
        name: String,
        /// operator: everything; tenant: what belongs to --project; enrolment: registering one node, once.
        #[arg(long, value_name = "ROLE", value_parser = parse_word::<Role>)]
        role: Role,
        /// Time until it is worth nothing, as 90s, 30m, 12h, 7d [default: never; of an enrolment token 1h].
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        ttl: Option<Duration>,
    },
    /// Revoke a token.
    Delete {
        /// Name or id.
        token: String,
    },
}

impl Arguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let session = Session::open(file, &self.flags, &self.scope)?;
        match self.verb {
            Verb::List(limit) => {
                session.list("/v1/tokens", &session.scoped(), limit.limit, |tokens| Ok(table(tokens)))
            }
            Verb::Create { name, role, ttl } => {
                let ttl_seconds = ttl.map(|ttl| ttl.as_secs());
                let request = NewToken { name, role, project: session.project.clone(), ttl_seconds };
                let document = session.client.change(Method::Post, "/v1/tokens", &request, None)?;
                session.show(document, |token: &IssuedToken| Ok(issued(token)))
            }
            Verb::Delete { token } => {
                let id = session.id("tokens", &token)?;
                session.ask(Method::Delete, &format!("/v1/tokens/{id}"), Follow { watch: false })
            }
        }
    }
}

/// A new token and its secret.
pub(super) fn issued(issued: &IssuedToken) -> String {
    let token = &issued.token;
    Details::default()
        .add("id", token.id.to_string())
        .add("name", &token.name)
        .add("role", word(&token.role))
        .add("project", token.project.clone().unwrap_or_default())
        .add("expires", token.expires_at.map_or("never".to_owned(), time))
        .add("secret", &issued.secret)
        .to_string()
}

fn table(tokens: &[Token]) -> Table {
    let mut table = Table::new(&["NAME", "ROLE", "PROJECT", "EXPIRES", ">AGE", "ID"]);
    let now = now();
    for token in tokens {
        table.row([
            token.name.clone(),
            word(&token.role),
            token.project.clone().unwrap_or_default(),
            token.expires_at.map_or("never".to_owned(), time),
            age(now, token.created_at),
            token.id.to_string(),
        ]);
    }
    table
}
