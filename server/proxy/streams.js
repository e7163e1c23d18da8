// A stream of events that breaks ends with an error: llama-server's router completes the answer of a model whose process
// ended (memory ran out, it crashed, it was stopped), as if the model had said everything.
//
// A stream from llama-server itself that breaks needs nothing: nginx closes the connection in the middle of the answer.

// To add an API that streams: add how its last event begins. Line breaks in a model's text are escaped.
const LAST = new RegExp([
    '\\ndata: \\[DONE\\]',                               // /v1/chat/completions, /v1/completions
    '\\nevent: response\\.(completed|incomplete|failed)', // /v1/responses
    '\\nevent: message_stop',                            // /v1/messages
    '"stop":true',                                       // /completion
    '\\n(event: error|error: |data: \\{"error":)',
].join('|'));
const LONGEST = 40; // characters of what LAST matches
const ENDED = 'ended';
const BROKEN = '{"type":"error","error":{"code":503,"type":"unavailable_error","message":"The answer is not complete: '
    + 'the process of the model ended, or was stopped. Ask again; if that does not help, read: docker compose logs"}}';

function complete(r, data, flags) {
    if (isStream(r) && r.variables.stream_end !== ENDED) {
        const text = (r.variables.stream_end || '\n') + data.toString();
        r.variables.stream_end = LAST.test(text) ? ENDED : text.slice(-LONGEST);
        if (flags.last && r.variables.stream_end !== ENDED) {
            r.sendBuffer(data, {flush: true});
            return r.sendBuffer(`\n\nevent: error\ndata: ${BROKEN}\n\n`, flags);
        }
    }
    r.sendBuffer(data, {last: flags.last, flush: true});
}

const isStream = (r) => (r.headersOut['Content-Type'] || '').startsWith('text/event-stream');

export default {complete};
