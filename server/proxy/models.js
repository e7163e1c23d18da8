// Decides which model a request names; the same rule as server/limits/model_names.py.
// Without a name, or with "default", which model cards print, the first of those that are served answers. A name that is
// not served is refused: llama-server with one model would answer with that one, whatever the name.
import {Refused} from 'limits.js';

const LISTED_MS = 1000; // how long a list of names counts; a server that was made anew takes longer to load
const SHOWN = 20;
const DEFAULT = 'default';

// The names that are served, the default first; undefined if there is no list: then the request was answered.
async function served(r) {
    const known = ngx.shared.served.get('names');
    if (known) return JSON.parse(known);
    const reply = await r.subrequest('/served', {method: 'GET'});
    const listed = reply.status === 200 ? JSON.parse(reply.responseText).data : [];
    const names = [...new Set(listed.flatMap((model) => [model.id, ...(model.aliases || [])]))];
    if (!names.length) {
        r.return(reply.status >= 400 && reply.status < 500 ? reply.status : 503);
        return undefined;
    }
    ngx.shared.served.set('names', JSON.stringify(names), LISTED_MS);
    return names;
}

// Refuses a name that is not served; `body`: undefined for a GET. Returns the name that the body has to be given.
function nameFor(r, names, body) {
    const inQuery = decoded(r.variables.arg_model || '');
    const inBody = body && body.model !== null ? body.model ?? '' : '';
    if (typeof inBody !== 'string') throw new Refused('model is not a string.', 'Send the name of a model, or leave it out.');
    const asked = inBody || inQuery;
    const found = asked && (inBody !== DEFAULT || names.includes(DEFAULT)) ? asked : names[0];
    if (!names.includes(found)) throw unknown(found, names);
    return inBody === found || !body ? '' : found;
}

function unknown(asked, names) {
    const shown = names.length > SHOWN ? [...names.slice(0, SHOWN), '…'] : names;
    return new Refused(`The model '${asked.slice(0, 100)}' is not served here.`,
        `Name one of these: ${shown.join(', ')}; without a name, ${names[0]} answers.`, 404);
}

function decoded(text) {
    try {
        return decodeURIComponent(text.replace(/\+/g, ' '));
    } catch (error) {
        return text;
    }
}

// The text of a body with a model's name: the last of two fields of one name counts.
function withModel(text, name, isEmpty) {
    const end = text.lastIndexOf('}');
    return `${text.slice(0, end)}${isEmpty ? '' : ','}"model":${JSON.stringify(name)}}`;
}

export {nameFor, served, withModel};
