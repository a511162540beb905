//! `POST /change`: what people do on the status page, each form one command of the control socket.
//!
//! Only for who has shown a password, on loopback too: an address alone says nothing of who asks. That no page elsewhere
//! sends a reader's browser here is seen to before ([`super::origin`]).

use std::net::IpAddr;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Form, FromRequest as _, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::access::User;
use super::control::{Command, Peer, carry_out, millis};
use super::{Desk, status};
use crate::model::decode::unknown;
use crate::model::duration;

/// The largest form, in bytes: the labels of an alert, and a comment.
pub(super) const MAX_FORM: usize = 16 * 1024;
/// The longest that it may take to arrive.
const FORM_WITHIN: Duration = Duration::from_secs(10);
/// What is said where nobody can show a password.
const NOBODY_MAY: &str = "nothing is changed over HTTP without a password: name basic_auth_users in web.config_file (docs/web.md), \
                          or use proctor silence, hold, alert and action on the host\n";

/// The fields of a form, in its order.
type Fields = Vec<(String, String)>;

pub(super) async fn change(
    State(desk): State<Desk>,
    Extension(from): Extension<IpAddr>,
    user: Option<Extension<User>>,
    request: Request,
) -> Response {
    let may = desk.access.gate().lets_change(user.as_deref());
    let user = match user {
        Some(Extension(User(user))) if may => user,
        Some(Extension(User(user))) => {
            return (StatusCode::FORBIDDEN, format!("{user} may only read: web.readers names it\n")).into_response();
        }
        None => return (StatusCode::FORBIDDEN, NOBODY_MAY).into_response(),
    };
    let fields = match tokio::time::timeout(FORM_WITHIN, Form::<Fields>::from_request(request, &())).await {
        Ok(Ok(Form(fields))) => fields,
        Ok(Err(rejection)) => return rejection.into_response(),
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "the form did not arrive in time\n").into_response(),
    };
    let done = match command(&fields) {
        Ok(command) => carry_out(&desk.pages.carry, command, Peer::Remote { user, from }).await,
        Err(why) => Err((StatusCode::UNPROCESSABLE_ENTITY, why)),
    };
    match done {
        Ok(_) => {
            desk.forget();
            // Relative, as every link of the page: it may be below any path.
            (StatusCode::SEE_OTHER, [(header::LOCATION, "./")]).into_response()
        }
        Err((status, why)) => match status::refused(&why) {
            Ok(page) => (status, Html(page)).into_response(),
            Err(_) => (status, format!("{why}\n")).into_response(),
        },
    }
}

/// Reads the command of a form; the button that was pressed says which.
fn command(fields: &Fields) -> Result<Command, String> {
    let all = |name: &str| fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.trim().to_owned()).collect::<Vec<_>>();
    let one = |name: &str| all(name).into_iter().next().unwrap_or_default();
    match one("do").as_str() {
        "ack" => Ok(Command::AlertAck { matchers: all("matcher"), comment: one("comment") }),
        "silence" => {
            let length = duration::parse(&one("for")).map_err(|error| error.to_string())?;
            Ok(Command::SilenceAdd { matchers: all("matcher"), for_ms: millis(length), comment: one("comment") })
        }
        "expire" => Ok(Command::SilenceExpire { id: one("id") }),
        "end" => Ok(Command::HoldEnd { id: Some(one("id")) }),
        "pause" => Ok(Command::ActionPause {}),
        "resume" => Ok(Command::ActionResume {}),
        other => Err(unknown("change", other, &["ack", "silence", "expire", "end", "pause", "resume"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_a_command_of_the_control_socket_and_no_form_is_one_that_ends_everything() {
        let of = |text: &[(&str, &str)]| command(&text.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect());
        let two = ["a=\"1\"".to_owned(), "b=\"2\"".to_owned()];
        assert_eq!(
            of(&[("matcher", &two[0]), ("matcher", &two[1]), ("comment", " mine\r\n"), ("for", "2h"), ("do", "silence")]),
            Ok(Command::SilenceAdd { matchers: two.to_vec(), for_ms: 7_200_000, comment: "mine".to_owned() })
        );
        assert_eq!(of(&[("do", "end")]), Ok(Command::HoldEnd { id: Some(String::new()) }), "never all of them");
        assert_eq!(of(&[("do", "silence"), ("for", "2")]), Err("expected a duration such as 30s, 5m or 1h30m, found \"2\"".to_owned()));
        assert!(of(&[]).is_err() && of(&[("do", "reload")]).is_err());
    }
}
