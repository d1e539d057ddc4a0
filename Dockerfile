FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# docker build --build-arg VERSION=$(git describe --tags --always): the image has no history to ask.
ARG VERSION=""
ARG COMMIT=""
RUN make build VERSION="$VERSION" COMMIT="$COMMIT"

# Nothing but the binary, and the certificates that TLS connections to Postgres and to a mail server are checked against.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /src/bin/server /server
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/server"]
CMD ["serve"]
