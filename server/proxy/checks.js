// Checks a body before llama-server reads it: the JSON itself, numbers and lists, grammars and schemas.
// The limits are in ../limits/request_limits.json; tests/hostile/api_requests.py explains what each counts.
import {Refused, atMost, mostOf} from 'limits.js';
import {checkGrammar} from 'grammar.js';
import {checkMedia} from 'media.js';
import {nameFor, served, withModel} from 'models.js';
import {checkSchemas} from 'schema.js';
import {session} from 'sessions.js';

const TYPE = /^application\/([a-z0-9.+-]+\+)?json\s*(;|$)/i;
const FORM = /^application\/x-www-form-urlencoded\s*(;|$)/i; // what curl -d sends

const TOKENS = ['max_tokens', 'max_completion_tokens', 'max_output_tokens', 'n_predict', 'repeat_last_n',
    'dry_penalty_last_n', 'penalty_last_n', 'n_keep', 'n_discard', 'top_k', 'min_keep'];
const PROBABILITIES = ['n_probs', 'top_logprobs', 'logprobs'];
const ANSWERS = ['n', 'n_cmpl', 'best_of'];
const STOPS = ['stop', 'stop_sequences'];
const STRUCTURE = /["[\]{},]/g;
const INTERNAL = ['grammar_triggers', 'grammar_lazy', 'preserved_tokens', 'chat_parser'];

async function check(r) {
    let named;
    try {
        const body = r.method === 'POST' ? bodyOf(r) : undefined;
        const names = await served(r);
        if (!names) return;
        const name = nameFor(r, names, body);
        named = name && names.length > 1 ? withModel(r.requestText, name, !Object.keys(body).length) : '';
        r.variables.session = session(r, body);
    } catch (error) {
        if (!(error instanceof Refused)) r.error(`a body could not be checked: ${error.message}\n${error.stack}`);
        return refuse(r, error instanceof Refused ? error : new Refused('The body could not be checked.', 'Send a simpler one.'));
    }
    if (named) r.variables.named = named;
    r.internalRedirect(named ? '@named' : '@model');
}

function bodyOf(r) {
    checkHeader(r);
    const body = read(r);
    checkBody(r.uri, body);
    return body;
}

function refuse(r, refused) {
    const status = refused.status, type = status === 404 ? 'not_found_error' : 'invalid_request_error';
    r.headersOut['Content-Type'] = 'application/json';
    r.return(status, JSON.stringify({error: {code: status, type, message: refused.message}}));
}

function checkHeader(r) {
    const encoding = r.headersIn['Content-Encoding'];
    if (encoding && encoding !== 'identity') {
        throw new Refused(`The body is encoded as '${encoding.slice(0, 40)}'.`, 'Send it as plain JSON.', 415);
    }
    const type = r.headersIn['Content-Type'] || '';
    // Any web page can send a form without a CORS preflight; its browser then adds Origin.
    if (!(TYPE.test(type) || (FORM.test(type) && !r.headersIn.Origin))) {
        throw new Refused(`The Content-Type is '${type.slice(0, 40)}'.`, 'Send the header Content-Type: application/json.', 415);
    }
}

function read(r) {
    const bytes = r.requestBuffer;
    if (!bytes || bytes.length === 0) throw new Refused('The body is empty.', 'Send a JSON object.');
    const text = r.requestText;
    if (text.includes('\ufffd') && !isUtf8(bytes)) throw new Refused('The body is not UTF-8.', 'Send JSON in UTF-8.');
    checkShape(text);
    let body;
    try {
        body = JSON.parse(text);
    } catch (error) {
        throw new Refused(`The body is not JSON: ${error.message}.`, 'Send a JSON object.');
    }
    if (!isObject(body)) throw new Refused('The body is not a JSON object.', 'Send one, such as {"messages": […]}.');
    return body;
}

function isUtf8(bytes) {
    try {
        new TextDecoder('utf-8', {fatal: true}).decode(bytes);
        return true;
    } catch (error) {
        return false;
    }
}

// Counts levels and values before JSON.parse builds anything. Strings are skipped by searching for their end.
function checkShape(text) {
    let depth = 0, values = 1;
    const steps = {left: 4 * mostOf('json_values')};
    STRUCTURE.lastIndex = 0;
    for (let found; (found = STRUCTURE.exec(text)); ) {
        switch (found[0]) {
            case '"': STRUCTURE.lastIndex = endOfString(text, found.index, steps) + 1; break;
            case '[': case '{': atMost('json_depth', ++depth); break;
            case ']': case '}': depth--; break;
        }
        if (found[0] === ',' || found[0] === '[' || found[0] === '{') atMost('json_values', ++values);
    }
}

// `steps`: how many more quotation marks may be examined, in proportion to the limit of values.
function endOfString(text, start, steps) {
    let end = start;
    for (;;) {
        if (--steps.left < 0) throw new Refused('The body has too many quotation marks.', 'Send less at once.');
        end = text.indexOf('"', end + 1);
        if (end < 0) return text.length;
        let slashes = 0;
        while (text.charCodeAt(end - 1 - slashes) === 0x5c) slashes++;
        if (slashes % 2 === 0) return end;
    }
}

function checkBody(path, body) {
    if (path === '/models/load' && Object.keys(body).some((name) => name !== 'model')) {
        throw new Refused('Only the name of a model can be given to load it.', 'Send {"model": "…"}.');
    }
    for (const name of INTERNAL) {
        if (name in body) throw new Refused(`The field ${name} is internal to llama-server.`, 'Leave it out.');
    }
    for (const name of TOKENS) number('tokens', name, body);
    for (const name of PROBABILITIES) number('probabilities', name, body);
    for (const name of ANSWERS) number('answers', name, body);
    for (const name in body) {
        if (body[name] === Infinity || body[name] === -Infinity) {
            throw new Refused(`${name} is too large for a number.`, 'Send a smaller one.');
        }
    }
    for (const name of STOPS) stops(body[name]);
    if (path === '/tokenize') atMost('text_bytes', bytesOf(body.content));
    atMost('messages', count(body.messages));
    atMost('tools', count(body.tools));
    atMost('prompts', Math.max(texts(body.prompt), texts(body.input)));
    atMost('biases', count(body.logit_bias));
    atMost('samplers', Math.max(count(body.samplers), count(body.dry_sequence_breakers)));
    checkMedia(body);
    if (body.grammar !== undefined && body.grammar !== null) checkGrammar(body.grammar);
    checkSchemas(schemas(body));
}

function number(limit, name, body) {
    const value = body[name];
    if (typeof value !== 'number') return;
    if (value < -2) throw new Refused(`${name} is ${value}.`, 'Send a number of at least -2.');
    atMost(limit, value, name);
}

function stops(value) {
    if (value === undefined || value === null) return;
    const list = Array.isArray(value) ? value : [value];
    atMost('stops', list.length);
    for (const stop of list) atMost('stop_chars', typeof stop === 'string' ? stop.length : 0);
}

function bytesOf(content) {
    if (typeof content === 'string') return Buffer.from(content).length;
    return Array.isArray(content) ? content.reduce((sum, part) => sum + bytesOf(part), 0) : 0;
}

const count = (value) => (Array.isArray(value) ? value.length : isObject(value) ? Object.keys(value).length : 0);
const texts = (value) => (Array.isArray(value) && value.some((part) => typeof part !== 'number') ? value.length : 0);
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

// To add a place where a schema may be: add a line.
function schemas(body) {
    const found = [
        body.json_schema,
        at(body, 'response_format', 'schema'),
        at(body, 'response_format', 'json_schema', 'schema'),
        at(body, 'text', 'format', 'schema'),
        at(body, 'output_format', 'schema'),
        at(body, 'output_config', 'format', 'schema'),
    ];
    for (const tool of Array.isArray(body.tools) ? body.tools : []) {
        found.push(at(tool, 'function', 'parameters'), at(tool, 'parameters'), at(tool, 'input_schema'));
    }
    return found.filter((schema) => typeof schema === 'object' && schema !== null);
}

function at(value, ...names) {
    return names.reduce((inner, name) => (isObject(inner) ? inner[name] : undefined), value);
}

export default {check};
