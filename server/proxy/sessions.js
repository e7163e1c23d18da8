// Names the conversation that a request belongs to, in the header X-Session-ID: the balancer (../balancer/haproxy.cfg)
// sends what has one name to one server, which then has its prompt in memory. With one server nobody reads it.
//
// The client's own header counts, then OpenAI's field `prompt_cache_key`. Without them, the model, the instructions and
// the messages up to the first of the user: the same in every turn of a conversation, and others in another one. A
// request that is no chat has nothing that stays the same, so it is spread by all that it says.
import crypto from 'crypto';

const LONGEST = 256; // characters of a name

function session(r, body) {
    const named = r.headersIn['X-Session-ID'] || (body && body.prompt_cache_key);
    if (typeof named === 'string' && named) return hash(named.slice(0, LONGEST));
    if (!body) return '';
    const turns = [body.messages, body.input].find(Array.isArray) || [];
    const first = turns.findIndex((turn) => turn && turn.role === 'user');
    return hash(first < 0 ? r.requestText : JSON.stringify([body.model, body.system, body.instructions, turns.slice(0, first + 1)]));
}

const hash = (text) => crypto.createHash('sha256').update(text).digest('hex').slice(0, 32);

export {session};
