//! What the conductor needs from others: an agent in a sandbox, a clock, someone who listens.

use model::{AgentName, MessageId, SessionId, TurnId};

/// What a session needs to be started.
#[derive(Debug, Clone)]
pub struct SessionSeed {
    /// The session.
    pub session: SessionId,
    /// Its agent.
    pub agent: AgentName,
    /// Whether the session has been open before, so that its conversation is taken up again.
    pub resumed: bool,
}

/// Makes agents in sandboxes. Implemented by the product over sandbox, gateway and agent.
pub trait AgentHost: Send + Sync {
    /// Starts the sandbox of a session with its agent in it; on record before it runs.
    ///
    /// # Errors
    /// With a sentence for the person when it cannot be had.
    fn start(&self, seed: &SessionSeed) -> Result<Box<dyn AgentLink>, Failure>;
}

/// A running agent.
pub trait AgentLink: Send {
    /// Runs one turn. `on` hears what happens while it happens.
    ///
    /// # Errors
    /// See [`Failure`].
    fn prompt(
        &mut self,
        turn: &TurnId,
        text: &str,
        on: &mut dyn FnMut(Progress),
    ) -> Result<TurnDone, Failure>;

    /// A handle that stops the running turn from another thread.
    fn canceller(&self) -> Box<dyn Cancel>;

    /// Ends agent and sandbox, and says on record how.
    fn stop(self: Box<Self>, reason: &str);
}

/// Stops a turn.
pub trait Cancel: Send {
    /// Asks the agent to stop; the turn then ends with [`TurnDone::cancelled`].
    fn cancel(&self);
}

/// A finished turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TurnDone {
    /// The reply.
    pub text: String,
    /// Whether a person stopped it.
    pub cancelled: bool,
    /// Tokens sent to the model.
    pub input_tokens: u64,
    /// Tokens it answered.
    pub output_tokens: u64,
}

/// Why there is no agent, or no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What sort it is; decides whether it is tried again.
    pub kind: FailureKind,
    /// For the person: what happened, and what to do.
    pub sentence: String,
}

/// The sorts of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Passing: the model's server is down or busy. Nothing had an effect yet.
    Passing,
    /// It will fail again in the same way: a bad key, an unknown model, a missing wall.
    Lasting,
    /// The agent or its sandbox died.
    LinkLost,
}

/// What happens during a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A turn began.
    TurnStarted {
        /// Which.
        turn: TurnId,
        /// On which message.
        message: MessageId,
    },
    /// More of the reply.
    Text(String),
    /// The agent calls a tool.
    ToolStarted {
        /// The call's id.
        id: String,
        /// The tool's name.
        tool: String,
        /// Its arguments as JSON.
        arguments: String,
    },
    /// A tool answered.
    ToolFinished {
        /// The call's id.
        id: String,
        /// Whether it succeeded.
        ok: bool,
        /// What it answered, cut short.
        summary: String,
        /// How much it answered, bytes.
        bytes: u64,
    },
    /// Something the person should know while waiting.
    Notice(String),
    /// The queue cannot be worked on, for this reason. No turn ends; what is queued is kept until
    /// the next message or start.
    Halted(String),
    /// The turn ended; the reply is in the outbox.
    TurnFinished {
        /// Which.
        turn: TurnId,
        /// On which message.
        message: MessageId,
        /// `done`, `cancelled`, `failed` or `requeued`.
        outcome: String,
        /// The reply, or the sentence about the failure.
        reply: String,
        /// Tokens sent and answered.
        tokens: (u64, u64),
        /// Of a message put back: in how many seconds this engine tries again, if it lives.
        retry_s: Option<u64>,
    },
}

/// Hears what happens in every session.
pub type Listener = Box<dyn Fn(&SessionId, Progress) + Send + Sync>;

/// Clock and randomness, so that tests can bring their own.
pub trait World: Send + Sync {
    /// Unix milliseconds.
    fn now_ms(&self) -> u64;
    /// 32 unpredictable bits.
    fn random(&self) -> u32;
    /// 16 unpredictable bytes, for salts.
    fn salt(&self) -> [u8; 16];
}
