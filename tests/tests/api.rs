//! A monitor's API, as its OpenAPI document describes it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use coracle_tests::Place;
use coracle_tests::detached::Detached;
use coracle_tests::place::text;
use serde_json::{Value, json};

fn document() -> Value {
    let printed = Place::new().output(["api"]);
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    serde_json::from_slice(&printed.stdout).unwrap()
}

#[test]
fn the_document_in_the_repository_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let kept: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(kept == document(), "write it anew: coracle api > docs/openapi.json");
}

/// One request on a connection of its own.
fn ask(pod: &Detached<'_>, method: &str, path: &str, body: &str) -> (u16, Value) {
    // The socket's path may be too long for one.
    let folder = fs::File::open(pod.run_dir()).unwrap();
    let socket = format!("/proc/self/fd/{}/api.sock", folder.as_raw_fd());
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|_| panic!("{method} {path}: {answer}")))
}

/// Fails unless the answer is what the document says of it.
fn assert_described(document: &Value, method: &str, path: &str, status: u16, answer: &Value) {
    let responses = &document["paths"][path][method.to_lowercase()]["responses"];
    let named = &responses[status.to_string()];
    let response = if named.is_null() { &responses["default"] } else { named };
    let schema = &response["content"]["application/json"]["schema"];
    assert!(schema.is_object(), "{method} {path} does not describe {status}");
    let whole = json!({ "components": document["components"], "allOf": [schema] });
    let validator = jsonschema::validator_for(&whole).unwrap();
    let faults: Vec<String> =
        validator.iter_errors(answer).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(faults.is_empty(), "{method} {path} {status}: {faults:#?} in {answer:#}");
}

#[test]
fn a_monitor_answers_as_the_document_says() {
    let document = document();
    let place = Place::new();
    let tree = tempfile::tempdir().unwrap();
    let volume = format!("{}:/srv:ro", tree.path().display());
    let pod = Detached::start(&place, &["-v", &volume, "--health-cmd", "true", "--max-cpus", "2"]);
    let check = |method: &str, path: &str, pattern: &str, body: &str| {
        let (status, answer) = ask(&pod, method, path, body);
        assert_described(&document, method, pattern, status, &answer);
        (status, answer)
    };
    let plain = |method: &str, path: &str, body: &str| check(method, path, path, body);

    // Whatever can be asked without changing anything.
    let paths = document["paths"].as_object().unwrap();
    let mut asked = 0;
    for (path, operations) in paths {
        let waits = path.ends_with("/exit");
        if operations.get("get").is_some() && !path.contains('{') && !waits {
            assert_eq!(plain("GET", path, "").0, 200, "{path}");
            asked += 1;
        }
    }
    assert!(asked >= 6, "{asked}");

    let side = json!({
        "name": "side", "rootfs": "BuiltIn", "detached": true,
        "command": { "args": ["sleep", "1000"], "env": [], "stdin": false },
    });
    assert_eq!(plain("POST", "/v1/containers", &side.to_string()).0, 200);
    let one = "/v1/containers/{name}";
    assert_eq!(check("GET", "/v1/containers/side", one, "").1["state"], "running");
    let exec = json!({ "args": ["sh", "-c", "exit 3"], "env": [], "stdin": false });
    let execs = "/v1/containers/{name}/execs";
    let (_, started) = check("POST", "/v1/containers/side/execs", execs, &exec.to_string());
    let exit = format!("/v1/execs/{}/exit", started["id"]);
    assert_eq!(check("GET", &exit, "/v1/execs/{id}/exit", "").1["exit_code"], 3);
    assert_eq!(plain("POST", "/v1/containers", &side.to_string()).0, 409);
    assert_eq!(check("DELETE", "/v1/containers/side", one, "").0, 200);
    assert_eq!(check("GET", "/v1/containers/side", one, "").0, 404);
    let update = json!({ "vcpus": 2 }).to_string();
    assert_eq!(plain("POST", "/v1/update", &update).1["vcpus"], 2);

    // What is wrong is told in the same form, whoever finds it.
    for (method, path, body, expected) in [
        ("POST", "/v1/signal", "no json", 400),
        ("POST", "/v1/signal", r#"{"signal":"x"}"#, 422),
        ("GET", "/v1/no/such/path", "", 404),
        ("DELETE", "/v1/stats", "", 405),
        ("GET", "/v1/execs/none/exit", "", 400),
    ] {
        let (status, failure) = ask(&pod, method, path, body);
        assert_eq!((status, failure["code"].as_str()), (expected, Some("E-REQUEST")), "{path}");
        assert_described(&document, "POST", "/v1/signal", 500, &failure);
    }
    assert_eq!(plain("POST", "/v1/plugs/remove", r#"{"kind":"disk","key":"/x"}"#).0, 404);
    pod.run(&["rm", "-f", "@"]);
    place.assert_nothing_left();
}
