//! How a verb talks to the running service: the endpoint file says where it is, its key opens it.

use super::{Error, Exit, args::EndpointArgs};
use crate::job::{self, Endpoint, Env};
use reqwest::{Method, blocking};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

/// Longest time an answer of the admin API may take; it never waits for an engine, but for the node's processors.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the service.
pub struct Client {
    http: blocking::Client,
    base: String,
    /// What the service published of itself.
    pub endpoint: Endpoint,
}

impl Client {
    /// Finds the service: the named endpoint file, this job's, or outside a job the only one that lives.
    pub fn find(args: &EndpointArgs) -> Result<Self, Error> {
        let env = Env::of_process();
        let (job, node) = (env.get("SLURM_JOB_ID"), env.get("SLURMD_NODENAME"));
        let endpoint = job::endpoint::find(args.endpoint_file.as_deref(), job, node).map_err(|error| {
            Error::new(Exit::Unavailable, "cannot find a running swapserve")
                .because(error)
                .remedy("start one with `swapserve serve` or `run`; name its file with --endpoint-file if it is another job's")
        })?;
        Self::open(endpoint)
    }

    /// Over the Unix socket where it can be reached (same node), else over TCP.
    ///
    /// # Errors
    /// Where it listens on the loopback address of another node: whoever listens there on this one would get the key.
    pub fn open(endpoint: Endpoint) -> Result<Self, Error> {
        if !endpoint.is_reachable() {
            let message =
                format!("the service listens on {} for its own node {} only", endpoint.url, endpoint.node);
            return Err(Error::new(Exit::Unavailable, message).remedy(
                "`srun --overlap --jobid JOB` runs this command there; with `[router] host = \"0.0.0.0\"` every node can reach it",
            ));
        }
        let mut builder = blocking::Client::builder().timeout(ANSWER_TIMEOUT).no_proxy();
        let mut base = endpoint.url.trim_end_matches("/v1").to_owned();
        if let Some(socket) = endpoint.socket.as_ref().filter(|path| path.exists()) {
            builder = builder.unix_socket(socket.clone());
            base = "http://localhost".to_owned();
        }
        let http = builder
            .build()
            .map_err(|error| Error::new(Exit::Software, "cannot make an HTTP client").because(error))?;
        Ok(Client { http, base, endpoint })
    }

    /// The service's key; `None` where it asks for none.
    pub fn key(&self) -> Option<&str> {
        self.endpoint.key.as_deref()
    }

    /// Asks for a JSON answer.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.send(Method::GET, path, None::<&()>, ANSWER_TIMEOUT)
    }

    /// Sends a JSON body, and waits up to `longest` for the answer.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        longest: Duration,
    ) -> Result<T, Error> {
        self.send(Method::POST, path, Some(body), longest)
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        longest: Duration,
    ) -> Result<T, Error> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).timeout(longest);
        if let Some(key) = self.key() {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |error: reqwest::Error| {
            Error::new(Exit::Unavailable, format!("the service at {} does not answer", self.endpoint.url))
                .because(error.without_url())
                .remedy("it may have ended; `swapserve serve` starts another")
        };
        let answer = request.send().map_err(unreachable)?;
        let status = answer.status();
        if status.is_success() {
            return answer.json().map_err(unreachable);
        }
        let value: serde_json::Value = answer.json().unwrap_or_default();
        let message = value["error"]["message"].as_str().unwrap_or("no reason given").to_owned();
        let exit = match status.as_u16() {
            404 => Exit::Usage,
            409 | 429 | 503 | 504 => Exit::TryAgain,
            _ => Exit::Unavailable,
        };
        Err(Error::new(exit, message))
    }
}
