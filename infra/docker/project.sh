#!/bin/sh
# Entry point of the image: brings the project to $R1FLOW_PROJECT, then runs the command there.
#
#   R1FLOW_REPOSITORY  what git clones; without it the project has to be there already
#   R1FLOW_REVISION    branch, tag or commit to start from; default: the repository's own branch
#   R1FLOW_PULL        targets of `dvc pull`, separated by spaces; default: none
#
# Every step may be done twice: a container that was killed in the middle begins again and completes it.
set -eu
: "${R1FLOW_PROJECT:?must name the folder of the project}"

if [ -n "${R1FLOW_REPOSITORY:-}" ]; then
    git init --quiet "$R1FLOW_PROJECT"
    cd "$R1FLOW_PROJECT"
    rm -f .git/index.lock # of a container that was killed: nobody else works here yet
    git config remote.origin.url "$R1FLOW_REPOSITORY"
    git config remote.origin.fetch '+refs/heads/*:refs/remotes/origin/*'
    if timeout 300 git fetch --quiet --tags --force origin; then
        timeout 60 git remote set-head origin --auto > /dev/null
    elif ! git rev-parse --quiet --verify HEAD > /dev/null; then
        echo "project: $R1FLOW_REPOSITORY does not answer, and nothing of it is here yet" >&2
        exit 1
    else
        echo "project: $R1FLOW_REPOSITORY does not answer: going on with $(git rev-parse --short HEAD)" >&2
    fi
    wanted=${R1FLOW_REVISION:-HEAD}
    # A branch as the repository has it now, else a tag or a commit.
    commit=$(git rev-parse --quiet --verify "refs/remotes/origin/$wanted^{commit}" || git rev-parse --verify "$wanted^{commit}")
    git checkout --quiet --force --detach "$commit"
fi
cd "$R1FLOW_PROJECT"
for target in ${R1FLOW_PULL:-}; do
    timeout 3600 dvc pull --quiet "$target"
done
exec "$@"
