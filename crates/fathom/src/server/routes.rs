//! The addresses of the API. Each is added with its description, so that the document has what the router has.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::handler::Handler;
use axum::http::{Request as HttpRequest, StatusCode};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use axum::{Router, middleware};
use utoipa::openapi::Paths;
use utoipa::openapi::path::HttpMethod;

use super::chat::Chat;
use super::guard::guard;
use super::log::log;
use super::messages::Messages;
use super::openapi::{
    Asked, ChatBody, ChatReply, Foreign, MessagesBody, MessagesRefused, MessagesReply, Refused, ResponsesBody,
    ResponsesReply, ServerEvent, WithBody,
};
use super::reply::reply;
use super::responses::Responses;
use super::{
    ApiError, Generate, Service, about, completions, messages, metrics, page, prefills, sessions, status, tokens,
};

type Shared<G> = Arc<Service<G>>;

/// Routes, and what is said of them.
pub(super) struct Routes<G> {
    router: Router<Shared<G>>,
    pub paths: Paths,
}

impl<G: Generate> Routes<G> {
    /// Adds an operation: `P` describes what `handler` does.
    pub(super) fn add<P: utoipa::Path, T: 'static>(mut self, _: P, handler: impl Handler<T, Shared<G>>) -> Self {
        let (path, methods) = (P::path(), P::methods());
        let filters = methods.iter().map(|method| match method {
            HttpMethod::Get => MethodFilter::GET,
            HttpMethod::Delete => MethodFilter::DELETE,
            _ => MethodFilter::POST,
        });
        if let Some(filter) = filters.reduce(MethodFilter::or) {
            self.router = self.router.route(&path, on(filter, handler));
        }
        self.paths.add_path_operation(&path, methods, P::operation());
        self
    }
}

/// All routes.
pub(super) fn routes<G: Generate>() -> Routes<G> {
    use completions::{__path_completions, completions};
    use messages::{__path_count_tokens, count_tokens};
    use metrics::{__path_metrics, metrics};
    use tokens::{__path_detokenize, __path_tokenize, detokenize, tokenize};
    let routes = Routes { router: Router::new(), paths: Paths::new() }
        .add(__path_chat, chat::<G>)
        .add(__path_responses, responses::<G>)
        .add(__path_messages_, messages_::<G>)
        .add(__path_count_tokens, count_tokens::<G>)
        .add(__path_completions, completions::<G>)
        .add(__path_tokenize, tokenize::<G>)
        .add(__path_detokenize, detokenize::<G>)
        .add(about::__path_models, about::models::<G>)
        .add(about::__path_model, about::model::<G>)
        .add(prefills::__path_list, prefills::list::<G>)
        .add(prefills::__path_stop, prefills::stop::<G>)
        .add(status::__path_status, status::status::<G>)
        .add(about::__path_health, about::health::<G>)
        .add(__path_metrics, metrics::<G>)
        .add(about::__path_openapi, about::openapi::<G>);
    sessions::routes(routes)
}

/// The routes of the API.
pub fn router<G: Generate>(service: Arc<Service<G>>) -> Router {
    routes()
        .router
        .merge(page::routes())
        .fallback(|| async { ApiError::other(StatusCode::NOT_FOUND, "not_found", "There is nothing at this address.") })
        .method_not_allowed_fallback(|| async {
            let message = "This address does not take this method.";
            ApiError::other(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&service), guard::<G>))
        .layer(middleware::from_fn_with_state(Arc::clone(&service), log::<G>))
        .with_state(service)
}

/// OpenAI's chat, with DeepSeek's fields.
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatBody,
    responses((status = 200, content((ChatReply = "application/json"), (ServerEvent = "text/event-stream"))), Refused, WithBody, Asked))]
async fn chat<G: Generate>(service: State<Shared<G>>, request: HttpRequest<Body>) -> Response {
    reply::<G, Chat>(service, request).await
}

/// OpenAI's responses. Nothing is stored: each request has the whole conversation.
#[utoipa::path(post, path = "/v1/responses", request_body = ResponsesBody,
    responses((status = 200, content((ResponsesReply = "application/json"), (ServerEvent = "text/event-stream"))), Refused, WithBody,
        Asked))]
async fn responses<G: Generate>(service: State<Shared<G>>, request: HttpRequest<Body>) -> Response {
    reply::<G, Responses>(service, request).await
}

/// Anthropic's messages.
#[utoipa::path(post, path = "/v1/messages", operation_id = "messages", request_body = MessagesBody,
    responses((status = 200, content((MessagesReply = "application/json"), (ServerEvent = "text/event-stream"))), Foreign, MessagesRefused))]
async fn messages_<G: Generate>(service: State<Shared<G>>, request: HttpRequest<Body>) -> Response {
    reply::<G, Messages>(service, request).await
}
